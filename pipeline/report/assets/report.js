// Shared by the other scripts: the data, number formats, the theme, sortable tables, printing.
"use strict";
const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  root.classList.add("scripted");

  const by = (id) => document.getElementById(id);
  const count = (value) => value.toLocaleString("en");
  const percent = (value, digits = 1) => {
    if (value === null || value === undefined) return "—";
    const least = 10 ** -digits;
    return value > 0 && value * 100 < least / 2 ? `<${least}%` : `${(value * 100).toFixed(digits)}%`;
  };

  // An element with its text (never HTML) and attributes; null children are left out.
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key in made && typeof value !== "string") made[key] = value;
      else made.setAttribute(key, value);
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  };
  const swatch = (k) => {
    const made = element("span", { class: "swatch" });
    made.style.background = data.colours[k];
    return made;
  };

  // --- theme: same as the system, light, or dark
  const themes = ["auto", "light", "dark"];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const listeners = [];
  const colour = (name) => getComputedStyle(root).getPropertyValue(`--${name}`).trim();
  const remembered = () => {
    try { return localStorage.getItem("report-theme"); } catch { return null; } // a local file may have no storage
  };
  const wear = (theme) => {
    if (theme === "auto") root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
    const words = { auto: "same as the system", light: "light", dark: "dark" }[theme];
    by("theme").setAttribute("aria-label", `Colours: ${words}`);
    by("theme").title = `Colours: ${words}`;
    by("theme").querySelector("span").textContent = theme[0].toUpperCase() + theme.slice(1);
    by("theme").dataset.theme = theme;
    listeners.forEach((listener) => listener());
  };
  by("theme").addEventListener("click", () => {
    const next = themes[(themes.indexOf(by("theme").dataset.theme) + 1) % themes.length];
    try { localStorage.setItem("report-theme", next); } catch { /* without storage the theme is forgotten when the page closes */ }
    wear(next);
  });
  dark.addEventListener("change", () => listeners.forEach((listener) => listener()));
  wear(themes.includes(remembered()) ? remembered() : "auto");

  // --- tables
  const valueOf = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.replaceAll(",", "");
    const number = Number.parseFloat(text);
    return cell.classList.contains("n") || cell.dataset.value !== undefined
      ? (Number.isNaN(number) ? -1 : number) : text;
  };
  const sortBy = (table, header, column) => {
    const down = header.getAttribute("aria-sort") !== "descending";
    table.querySelectorAll("[aria-sort]").forEach((other) => other.removeAttribute("aria-sort"));
    header.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows];
    const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
    rows.sort((a, b) => compare(valueOf(a, column), valueOf(b, column)));
    table.tBodies[0].append(...rows);
  };
  document.querySelectorAll("table.sortable").forEach((table) => {
    [...table.tHead.rows[0].cells].forEach((header, column) => {
      if (header.tagName !== "TH") return;
      const button = element("button", { type: "button" }, ...header.childNodes);
      header.append(button);
      button.addEventListener("click", () => sortBy(table, header, column));
    });
  });
  // Rows of texts; numbers in all columns but the first `names`.
  const table = (columns, rows, names = 1) => element("table", {},
    element("thead", {}, element("tr", {}, ...columns.map((title, i) =>
      element("th", { scope: "col", class: i < names ? "" : "n" }, title)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((text, i) =>
      i === 0 ? element("th", { scope: "row" }, text) : element("td", { class: i < names ? "" : "n" }, text))))));

  // Call `begin` once: when an element scrolls into view, or when the browser is idle.
  const sights = new Map();
  const see = (target) => {
    watcher.unobserve(target);
    const begin = sights.get(target);
    sights.delete(target);
    if (target.isConnected) begin?.(); // an image that was filtered out is not in the page
  };
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) see(entry.target);
  }, { rootMargin: "300px" });
  const whenIdle = (begin) => (window.requestIdleCallback ? requestIdleCallback(begin) : setTimeout(begin, 50));
  let isResting = true;
  const seeNext = () => {
    const [next] = sights.keys();
    isResting = next === undefined;
    if (isResting) return;
    whenIdle(seeNext);
    see(next);
  };
  const goOn = () => { if (isResting && document.readyState === "complete") { isResting = false; whenIdle(seeNext); } };
  const whenSeen = (target, begin) => { sights.set(target, begin); watcher.observe(target); goOn(); };
  addEventListener("load", goOn);

  // --- printing: light theme, everything drawn. `end` reverts what `begin` does.
  const printers = [];
  const print = matchMedia("print");
  let theme = null;
  let isPrinting = false;
  const prepare = () => {
    if (isPrinting) return;
    isPrinting = true;
    [...sights.keys()].forEach(see);
    theme = root.getAttribute("data-theme");
    root.setAttribute("data-theme", "light");
    printers.forEach(({ begin }) => begin());
  };
  const restore = () => {
    if (!isPrinting || print.matches) return;
    isPrinting = false;
    if (theme === null) root.removeAttribute("data-theme");
    else root.setAttribute("data-theme", theme);
    printers.forEach(({ end }) => end());
  };
  addEventListener("beforeprint", prepare);
  addEventListener("afterprint", restore);
  print.addEventListener("change", () => (print.matches ? prepare() : restore()));
  const whenPrinted = (begin, end) => printers.push({ begin, end });

  return { data, by, count, percent, element, swatch, colour, table, whenSeen, whenPrinted,
    onTheme: (listener) => listeners.push(listener) };
})();
