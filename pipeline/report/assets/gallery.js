// The gallery: cards with filters and an order, and a viewer whose panels share one zoom.
"use strict";
(() => {
  const { data, by, percent, count, element, swatch, colour, whenSeen, onTheme } = report;
  const pictures = data.pictures;
  const list = by("gallery");
  if (!list) return;
  const VOID = 255;
  const AT_ONCE = 24;
  const names = data.classes;
  const hasLabels = pictures.some((picture) => picture.label !== null);
  const seeThrough = new Set(data.firstIsBackground ? [0] : []);
  const views = [["overlay", "Overlay"], ["image", "Image"], ...(hasLabels ? [["label", "Label"]] : []), ["mask", "Mask"],
    ...(hasLabels ? [["mistakes", "Mistakes"]] : []), ["all", "All"]];
  const panelsOf = (view) => (view === "all" ? ["image", ...(hasLabels ? ["label"] : []), "mask", "overlay"] : [view]);

  // --- pixels: class indices, compressed with zlib, painted here
  const unpacked = new Map();
  const unpack = (packed, [width, height]) => {
    if (!unpacked.has(packed)) {
      const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
      unpacked.set(packed, fflate.unzlibSync(bytes, { out: new Uint8Array(width * height) }));
    }
    return unpacked.get(packed);
  };
  const channels = (hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16));
  const paints = data.colours.map(channels);
  const paint = (canvas, picture, kind) => {
    const mask = unpack(picture.mask, picture.small);
    const label = picture.label === null ? null : unpack(picture.label, picture.small);
    const context = canvas.getContext("2d");
    const pixels = context.createImageData(canvas.width, canvas.height);
    const wrong = channels(colour("bad"));
    const set = (at, rgb) => { pixels.data.set(rgb, 4 * at); pixels.data[4 * at + 3] = 255; };
    for (let at = 0; at < mask.length; at += 1) {
      const k = kind === "label" ? label[at] : mask[at];
      const isWrong = label !== null && label[at] !== VOID && label[at] !== mask[at];
      if (kind === "mistakes" || (kind === "overlay" && onlyMistakes)) { if (isWrong) set(at, wrong); continue; }
      if (kind === "overlay" && (k === VOID || seeThrough.has(k))) continue;
      set(at, k === VOID ? [224, 224, 192] : paints[k]);
    }
    context.putImageData(pixels, 0, 0);
    canvas.dataset.painted = "yes";
  };
  let onlyMistakes = false;

  const words = { image: "image", label: "label", mask: "mask", overlay: "mask over the image", mistakes: "where mask and label differ" };
  const panel = (picture, kind) => {
    const [width, height] = picture.small;
    const stack = element("div", { class: "stack" });
    const made = element("div", { class: `picture${Math.max(width, height) < 200 ? " coarse" : ""}` }, stack);
    made.style.aspectRatio = `${width} / ${height}`;
    if (kind !== "label" && kind !== "mask" && picture.image) {
      stack.append(element("img", { alt: "", src: picture.image, decoding: "async" }));
    }
    if ((kind === "label" || kind === "mistakes") && picture.label === null) {
      stack.append(element("span", { class: "missing" }, "no label"));
    } else if (kind !== "image") {
      const canvas = element("canvas", { width, height, class: kind === "overlay" || kind === "mistakes" ? "over" : "" });
      canvas.repaint = () => paint(canvas, picture, kind);
      stack.append(canvas);
      whenSeen(made, canvas.repaint);
    }
    return made;
  };
  const framed = (picture, kind) => {
    const made = panel(picture, kind);
    made.classList.add(picture.small[0] * 3 >= picture.small[1] * 4 ? "wide" : "tall");
    return element("div", { class: "frame" }, made);
  };
  const largest = (picture) => picture.classes.filter(([, share]) => share > 0).slice(0, 4)
    .map(([k, share]) => `${names[k]} ${percent(share, 0)}`).join(", ");

  // Reasons are values of the output format; these are their names in the page.
  const reasons = { "lowest mean IU": "lowest mean IoU", "drawn by lot": "randomly sampled" };
  const reasonText = (why) => reasons[why] ?? why;

  // --- filters and order of the images
  const orders = [
    ...(hasLabels ? [["iou", "lowest mean IoU"], ["accuracy", "lowest pixel accuracy"]] : []),
    ["confidence", "lowest confidence"], ["key", "by shard and key"],
  ];
  const fill = (select, options) => select.append(...options.map(([value, text]) => element("option", { value }, text)));
  const occurring = new Set(pictures.flatMap((picture) => picture.classes.map(([k]) => k)));
  fill(by("order"), orders);
  fill(by("with-class"), [["", "any"], ...[...occurring].sort((a, b) => a - b).map((k) => [String(k), names[k]])]);
  fill(by("with-shard"), [["", "any"], ...[...new Set(pictures.map(({ shard }) => shard))].sort().map((shard) => [shard, shard])]);
  fill(by("with-why"), [["", "any"], ...[...new Set(pictures.flatMap(({ why }) => why))].sort().map((why) => [why, reasonText(why)])]);
  by("view").append(...views.map(([value, text], i) => element("label", {},
    element("input", { type: "radio", name: "view", value, checked: i === 0 }), text)));

  let shown = [];
  let current = 0;
  let room = AT_ONCE;
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  const ordered = (order) => (a, b) => (order === "key" ? 0 : compare(a[order] ?? 2, b[order] ?? 2))
    || compare(a.shard, b.shard) || compare(a.key, b.key);
  const choose = () => {
    const klass = by("with-class").value === "" ? null : Number(by("with-class").value);
    const [shard, why, key] = ["with-shard", "with-why", "with-key"].map((id) => by(id).value);
    shown = pictures.filter((picture) => (klass === null || picture.classes.some(([k]) => k === klass))
      && (!shard || picture.shard === shard) && (!why || picture.why.includes(why))
      && picture.key.toLowerCase().includes(key.toLowerCase()));
    shown.sort(ordered(by("order").value));
    current = 0;
    room = AT_ONCE;
    fillList();
  };
  const card = (picture, at) => {
    const view = document.querySelector("input[name=view]:checked").value;
    const figures = [picture.iou === null ? null : `IoU ${percent(picture.iou)}`, picture.confidence === null ? null : `conf. ${percent(picture.confidence)}`];
    const about = element("div", { class: "about" }, element("b", {}, picture.key), element("span", { class: "muted" }, picture.shard),
      element("span", { class: "figures" }, ...figures.filter(Boolean).map((text) => element("span", {}, text))));
    const button = element("button", { type: "button", class: "card", title: `${picture.key}\n${picture.why.map(reasonText).join(", ")}`, "aria-label":
      `${picture.key} of shard ${picture.shard}, ${figures.filter(Boolean).join(", ")}; mask: ${largest(picture)}` },
    element("div", { class: "views" }, ...panelsOf(view).map((kind) => framed(picture, kind))), about);
    button.tabIndex = at === current ? 0 : -1;
    button.addEventListener("click", () => open(at));
    button.addEventListener("focus", () => { current = at; cards().forEach((other) => { other.tabIndex = other === button ? 0 : -1; }); });
    return element("li", {}, button);
  };
  const cards = () => [...list.querySelectorAll(".card")];
  const offerMore = () => {
    const left = Math.max(0, shown.length - room);
    by("more").hidden = !left;
    by("more").textContent = `Show more (${count(left)} left)`;
    by("not-printed").textContent = left ? `${count(left)} more are not printed. Use “Show more” in the report to see them.` : "";
  };
  const fillList = () => {
    list.className = `gallery ${document.querySelector("input[name=view]:checked").value}`;
    list.replaceChildren(...shown.slice(0, room).map(card));
    if (!shown.length) list.append(element("li", { class: "empty" }, "No image matches. Loosen the filters above."));
    by("shown-count").textContent = `${count(shown.length)} of ${count(pictures.length)} images`;
    offerMore();
  };
  by("more").addEventListener("click", () => {
    const first = room;
    room += AT_ONCE;
    list.append(...shown.slice(first, room).map((picture, i) => card(picture, first + i)));
    offerMore();
    cards()[first].focus();
  });
  by("filters").addEventListener("input", choose);
  by("filters").addEventListener("submit", (event) => event.preventDefault());
  by("view").addEventListener("change", fillList);
  list.addEventListener("keydown", (event) => {
    const all = cards();
    const tops = all.map((one) => one.getBoundingClientRect().top);
    const columns = Math.max(1, tops.filter((top) => Math.abs(top - tops[0]) < 2).length);
    const to = { ArrowRight: current + 1, ArrowLeft: current - 1, ArrowDown: current + columns, ArrowUp: current - columns,
      Home: 0, End: all.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    all[to]?.focus();
  });

  // --- opacity, one for all
  const sliders = ["opacity", "viewer-opacity"].map(by);
  const setOpacity = (value) => {
    const bounded = Math.min(100, Math.max(0, value));
    document.documentElement.style.setProperty("--opacity", bounded / 100);
    for (const slider of sliders) {
      slider.value = bounded;
      slider.nextElementSibling.textContent = `${bounded} %`;
    }
  };
  sliders.forEach((slider) => slider.addEventListener("input", () => setOpacity(Number(slider.value))));

  // --- the viewer
  const viewer = by("viewer");
  let viewed = 0;
  const zoom = { scale: 1, x: 0, y: 0 }; // x, y: top left corner, in widths and heights of a panel
  const stacks = () => [...by("panels").querySelectorAll(".stack")];
  const place = () => {
    const least = 1 - zoom.scale;
    zoom.x = Math.min(0, Math.max(least, zoom.x));
    zoom.y = Math.min(0, Math.max(least, zoom.y));
    stacks().forEach((stack) => { stack.style.transform = `translate(${100 * zoom.x}%, ${100 * zoom.y}%) scale(${zoom.scale})`; });
    by("panels").classList.toggle("zoomed", zoom.scale > 1);
  };
  const zoomBy = (factor, x = 0.5, y = 0.5) => {
    const scale = Math.min(16, Math.max(1, zoom.scale * factor));
    const grown = scale / zoom.scale;
    Object.assign(zoom, { scale, x: x - (x - zoom.x) * grown, y: y - (y - zoom.y) * grown });
    place();
  };
  const picture = () => shown[viewed];
  const name = (k) => (k === VOID ? "void" : names[k]);
  const read = (x, y) => {
    const found = picture();
    const [width, height] = found.small;
    const [column, row] = [Math.floor(((x - zoom.x) / zoom.scale) * width), Math.floor(((y - zoom.y) / zoom.scale) * height)];
    if (column < 0 || row < 0 || column >= width || row >= height) return;
    const at = row * width + column;
    const mask = unpack(found.mask, found.small)[at];
    const label = found.label === null ? null : unpack(found.label, found.small)[at];
    by("viewer-pixel").textContent = `Mask: ${name(mask)}${label === null ? "" : ` · label: ${name(label)}${label === VOID || label === mask ? "" : " · wrong"}`}`;
  };
  const pointers = new Map();
  const attach = (figure) => {
    const where = (event) => {
      const box = figure.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    figure.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomBy(Math.exp(-event.deltaY / 400), ...where(event));
    }, { passive: false });
    figure.addEventListener("pointerdown", (event) => { pointers.set(event.pointerId, where(event)); figure.setPointerCapture(event.pointerId); });
    figure.addEventListener("pointermove", (event) => {
      const now = where(event);
      const before = pointers.get(event.pointerId);
      if (before && pointers.size === 2) {
        const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
        const apart = (p) => Math.hypot(p[0] - other[0], p[1] - other[1]);
        zoomBy(apart(now) / Math.max(0.01, apart(before)), (now[0] + other[0]) / 2, (now[1] + other[1]) / 2);
      } else if (before) {
        zoom.x += now[0] - before[0];
        zoom.y += now[1] - before[1];
        place();
      }
      if (before) pointers.set(event.pointerId, now);
      read(...now);
    });
    for (const end of ["pointerup", "pointercancel"]) figure.addEventListener(end, (event) => pointers.delete(event.pointerId));
    figure.addEventListener("dblclick", (event) => zoomBy(2, ...where(event)));
  };
  const repaint = () => by("panels").querySelectorAll("canvas").forEach((canvas) => canvas.repaint());
  const show = () => {
    const found = picture();
    const fact = (title, text) => (text === null || text === "—" ? [] : [element("dt", {}, title), element("dd", {}, text)]);
    by("viewer-key").textContent = found.key;
    by("viewer-place").textContent = `shard ${found.shard} · ${viewed + 1} of ${shown.length}`;
    by("panels").style.setProperty("--ratio", found.small[0] / found.small[1]);
    by("panels").classList.toggle("narrow", found.small[0] / found.small[1] < 0.85);
    by("panels").replaceChildren(...panelsOf("all").map((kind) => {
      const made = panel(found, kind);
      attach(made);
      return element("figure", { "data-kind": kind }, made, element("figcaption", {}, words[kind]));
    }));
    by("viewer-facts").replaceChildren(...fact("Mean IoU", percent(found.iou)), ...fact("Pixel accuracy", percent(found.accuracy)),
      ...fact("Confidence", percent(found.confidence)), ...fact("Size", `${found.size[0]} × ${found.size[1]} px`),
      ...fact("Selected as", found.why.map(reasonText).join(", ") || null));
    by("viewer-classes").replaceChildren(...found.classes.slice(0, 30).map(([k, share, iou]) => {
      const box = element("input", { type: "checkbox", checked: !seeThrough.has(k), "aria-label": `Paint ${names[k]}` });
      box.addEventListener("change", () => { if (box.checked) seeThrough.delete(k); else seeThrough.add(k); repaint(); });
      return element("li", {}, element("label", {}, box, swatch(k), element("span", { class: "name" }, names[k]),
        element("span", { class: "n" }, `${iou === null ? "" : `${percent(iou, 0)} · `}${percent(share, 0)}`)));
    }));
    by("viewer-pixel").textContent = "Point at a pixel to read its classes.";
    by("viewer-before").disabled = viewed === 0;
    by("viewer-next").disabled = viewed === shown.length - 1;
    Object.assign(zoom, { scale: 1, x: 0, y: 0 });
    place();
  };
  const open = (at) => { viewed = at; show(); viewer.showModal(); by("viewer-close").focus(); };
  const step = (by_) => {
    const to = Math.min(shown.length - 1, Math.max(0, viewed + by_));
    if (to !== viewed) { viewed = to; show(); }
  };
  const mistakes = (value) => { onlyMistakes = value; by("viewer-mistakes").checked = value; repaint(); };
  by("viewer-mistakes").parentElement.hidden = !hasLabels;
  by("viewer-mistakes").addEventListener("change", (event) => mistakes(event.target.checked));
  by("viewer-before").addEventListener("click", () => step(-1));
  by("viewer-next").addEventListener("click", () => step(1));
  by("viewer-in").addEventListener("click", () => zoomBy(1.5));
  by("viewer-out").addEventListener("click", () => zoomBy(1 / 1.5));
  by("viewer-whole").addEventListener("click", () => zoomBy(0));
  by("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", (event) => { if (event.target === viewer) viewer.close(); });
  viewer.addEventListener("close", () => {
    // Set the focus to the image that was viewed last, whatever the browser restores.
    current = viewed;
    room = Math.max(room, current + 1);
    fillList();
    cards()[current]?.focus();
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isSlider = event.target.type === "range" && event.key.startsWith("Arrow");
    const opacity = Number(by("viewer-opacity").value);
    const keys = { ArrowLeft: () => step(-1), ArrowRight: () => step(1), ArrowUp: () => setOpacity(opacity + 10), ArrowDown: () => setOpacity(opacity - 10),
      "+": () => zoomBy(1.5), "=": () => zoomBy(1.5), "-": () => zoomBy(1 / 1.5), 0: () => zoomBy(0), m: () => hasLabels && mistakes(!onlyMistakes) };
    const act = keys[event.key.toLowerCase()] ?? keys[event.key];
    if (!act || isSlider) return;
    event.preventDefault();
    act();
  });

  onTheme(() => list.querySelectorAll("canvas").forEach((canvas) => canvas.repaint()));
  choose();
})();
