// The charts. Each has a text summary and its values as a table, and is drawn when seen or printed.
"use strict";
(() => {
  const { data, by, count, percent, element, swatch, colour, table, whenSeen, whenPrinted, onTheme } = report;
  const names = data.classes;
  // Colors of Okabe and Ito (2008), distinguishable with any color vision; patterns help further.
  const palette = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00"];
  const patterns = [
    { symbol: "none" },
    { symbol: "rect", dashArrayX: [1, 0], dashArrayY: [2, 5], rotation: -Math.PI / 4 },
    { symbol: "circle", symbolSize: 0.7, dashArrayX: [[8, 8], [0, 8, 8, 0]], dashArrayY: [6, 0] },
    { symbol: "rect", dashArrayX: [1, 0], dashArrayY: [4, 3] },
  ];
  const pattern = (i) => ({ color: "rgba(255, 255, 255, .45)", symbol: "none", ...patterns[i % patterns.length] });
  const cut = (text, length = 22) => (text.length > length ? `${text.slice(0, length - 1)}…` : text);
  const figure = (value) => (value < 10 ? value.toPrecision(2) : count(Math.round(value)));

  const base = () => ({
    animation: false,
    textStyle: { fontFamily: getComputedStyle(document.body).fontFamily, color: colour("text") },
    tooltip: {
      trigger: "axis", axisPointer: { type: "shadow", shadowStyle: { color: "rgba(128, 128, 128, .15)" } }, confine: true,
      backgroundColor: colour("card"), borderColor: colour("edge"), textStyle: { color: colour("text"), fontSize: 13 },
    },
  });
  const axis = (more) => ({
    axisLine: { lineStyle: { color: colour("edge") } }, axisTick: { show: false },
    axisLabel: { color: colour("muted") }, splitLine: { lineStyle: { color: colour("line") } },
    nameTextStyle: { color: colour("muted") }, ...more,
  });
  const legend = (more) => ({
    top: 0, right: 0, textStyle: { color: colour("text") }, itemWidth: 18, itemHeight: 11,
    inactiveColor: colour("line"), ...more,
  });
  const zoom = (shown) => (shown ? [{
    type: "slider", height: 20, bottom: 6, borderColor: colour("line"), fillerColor: "rgba(80, 140, 230, .18)",
    textStyle: { color: colour("muted") }, brushSelect: false, showDetail: false,
    dataBackground: { lineStyle: { color: colour("edge") }, areaStyle: { color: colour("track") } },
  }] : []);
  // Rounded limits and steps of an axis of shares that covers the values, not all of 0 to 1.
  const around = (columns) => {
    const values = columns.flat().filter((value) => value !== null);
    const [low, high] = [Math.min(1, ...values), Math.max(0, ...values)];
    const step = [0.01, 0.02, 0.05, 0.1, 0.2].find((size) => (high - low) / size <= 5) ?? 0.2;
    const near = (value) => Number(value.toFixed(2));
    return { min: near(Math.max(0, Math.floor(low / step - 0.1) * step)), max: near(Math.min(1, Math.ceil(high / step + 0.1) * step)), interval: step };
  };
  // The lines of a tooltip, as text and never as HTML: class names are data.
  const lines = (...texts) => element("div", {}, ...texts.filter(Boolean).map((text, i) =>
    element("div", { style: i ? "" : "font-weight:600;max-width:40ch;overflow-wrap:anywhere;white-space:normal" }, text)));

  // On paper: the width of an A4 or Letter page, or half of it, for any window; no table fills a page.
  const PAPER_WIDTH = 680;
  const MOST_ROWS = 24;
  // `option` takes the width in px; `tall` returns the height on paper.
  const draw = (id, { option, words, columns, rows, wide = 1, group, tall }) => {
    const holder = by(id);
    let chart = null;
    let repaint = () => {};
    if (!holder) return repaint;
    if (words) by(`${id}-text`).textContent = words;
    const details = holder.parentElement.querySelector("details.data");
    const scroll = details?.querySelector(".scroll");
    const fillTable = () => scroll.replaceChildren(table(columns, rows(), wide));
    details?.addEventListener("toggle", () => (details.open ? fillTable() : scroll.replaceChildren()));
    whenSeen(holder, () => {
      chart = echarts.init(holder, null, { renderer: "canvas" });
      const paint = () => chart.setOption(option(holder.clientWidth), true);
      paint();
      repaint = paint;
      if (group) { chart.group = group; echarts.connect(group); }
      onTheme(paint);
      new ResizeObserver(() => { if (holder.clientWidth) chart.resize(); }).observe(holder);
      holder.dispatchEvent(new CustomEvent("drawn", { detail: { chart, paint } }));
      holder.dataset.drawn = "yes";
    });
    // For print, an SVG beside the canvas, with the zoom and the selection of the screen.
    let paper = null;
    let isOpenedHere = false;
    whenPrinted(() => {
      const width = PAPER_WIDTH / (holder.closest(".columns") ? 2 : 1);
      const height = tall ? tall(width) : Number.parseFloat(holder.style.height);
      const page = element("div", { class: "paper", "aria-hidden": "true" });
      holder.after(page);
      paper = echarts.init(page, null, { renderer: "svg", width, height });
      paper.setOption(option(width));
      const { dataZoom = [], legend: legends = [] } = chart.getOption();
      paper.setOption({
        dataZoom: dataZoom.map(({ start, end }) => ({ start, end, show: end - start < 100 })),
        legend: legends.map(({ selected }) => ({ selected })),
      });
      const svg = page.querySelector("svg");
      svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
      if (details && !details.open && rows().length <= MOST_ROWS) {
        details.open = true;
        isOpenedHere = true;
      }
      // Opened just now, here or by the reader: its `toggle` would come after the print.
      if (details?.open && !scroll.firstChild) fillTable();
    }, () => {
      paper.getDom().remove();
      paper.dispose();
      if (isOpenedHere) details.open = false;
      isOpenedHere = false;
    });
    return () => {
      repaint();
      if (details?.open) fillTable();
    };
  };

  // --- shares of the classes
  const shares = () => {
    const { truth, predicted } = data.shares;
    const order = names.map((_, k) => k).filter((k) => truth[k] || predicted[k])
      .sort((a, b) => truth[b] - truth[a] || predicted[b] - predicted[a]);
    const chosen = order.slice(0, 30);
    const digits = Math.max(...chosen.map((k) => Math.max(truth[k], predicted[k]))) < 0.05 ? 1 : 0;
    if (by("share-chart")) by("share-chart").style.height = `${60 + (chosen.length > 12 ? 24 : 30) * chosen.length}px`;
    if (by("share-chart") && chosen.length < order.length) by("share-chart-title").textContent += ` (the ${chosen.length} largest of ${order.length} classes)`;
    draw("share-chart", {
      words: `The largest: ${chosen.slice(0, 5).map((k) => `${names[k]}, truth ${percent(truth[k])}, masks ${percent(predicted[k])}`).join("; ")}.`,
      columns: ["Class", "Truth", "Masks"],
      rows: () => order.map((k) => [names[k], percent(truth[k], 2), percent(predicted[k], 2)]),
      option: () => ({
        ...base(),
        grid: { left: 12 + 7 * Math.max(...chosen.map((k) => cut(names[k]).length)), right: 30, top: 30, bottom: 24 },
        legend: legend({ data: ["Truth", "Masks"], selectedMode: false, formatter: (name) => (name === "Masks" ? "Masks, in the color of the class" : name) }),
        tooltip: { ...base().tooltip, formatter: ([{ dataIndex }]) => {
          const k = chosen[dataIndex];
          return lines(names[k], `truth ${percent(truth[k], 2)}`, `masks ${percent(predicted[k], 2)}`);
        } },
        xAxis: axis({ type: "value", axisLabel: { color: colour("muted"), formatter: (v) => (v ? percent(v, digits) : "0%") } }),
        yAxis: axis({ type: "category", inverse: true, data: chosen.map((k) => cut(names[k])), axisLabel: { color: colour("text"), interval: 0 } }),
        series: [
          { name: "Truth", type: "bar", barWidth: 8, barGap: "25%", color: colour("muted"),
            data: chosen.map((k) => truth[k]) },
          { name: "Masks", type: "bar", barWidth: 8, color: colour("good"),
            itemStyle: { borderColor: colour("edge"), borderWidth: 1 },
            data: chosen.map((k) => ({ value: predicted[k], itemStyle: { color: data.colours[k] } })) },
        ],
      }),
    });
  };

  // --- shards
  const shards = () => {
    const cells = data.shards;
    const places = cells.first.map((_, i) => i);
    const single = cells.shards.every((n) => n === 1);
    const main = data.scored ? cells.iou : cells.confidence;
    const mainName = data.scored ? "Mean IoU" : "Mean confidence";
    const title = (i) => (cells.shards[i] === 1 ? cells.first[i] : `${count(cells.shards[i])} shards, ${cells.first[i]} to ${cells.last[i]}`);
    const range = (values, i) => (cells.shards[i] === 1 ? percent(values.mid[i])
      : `${percent(values.mid[i])} (${percent(values.low[i])} to ${percent(values.high[i])})`);
    const x = () => axis({ type: "category", data: cells.first, axisLabel: {
      color: colour("muted"), interval: places.length > 14 ? "auto" : 0, hideOverlap: true, formatter: (name) => cut(name, 14) } });
    const grid = { left: 52, right: 16, top: 34, bottom: places.length > 14 ? 62 : 34 };
    const about = (i) => [`${count(cells.images[i])} images, ${count(cells.failures[i])} quarantined`,
      cells.shards[i] > 1 ? `lowest: ${cells.lowest[i]}` : ""];
    const known = places.filter((i) => main.mid[i] !== null);
    const lowest = known.reduce((a, b) => (a === null || main.low[b] < main.low[a] ? b : a), null);
    const scatter = (name, values, i, symbol) => ({
      name, type: "line", data: values.mid, symbol, symbolSize: places.length > 200 ? 4 : 7, showAllSymbol: true,
      lineStyle: { width: single ? 0 : 1.5, opacity: 0.9 }, color: [colour("good"), colour("bad")][i], connectNulls: true,
    });
    const band = (values) => [
      { name: "lowest", type: "line", stack: "band", data: values.low, symbol: "none", lineStyle: { opacity: 0 }, silent: true },
      { name: "highest", type: "line", stack: "band", data: values.high.map((v, i) => (v === null ? null : v - values.low[i])),
        symbol: "none", lineStyle: { opacity: 0 }, areaStyle: { color: colour("good"), opacity: 0.2 }, silent: true },
    ];
    draw("shard-chart", {
      group: "shards",
      words: lowest === null ? "" : `${count(data.shards.shards.reduce((a, b) => a + b, 0))} shards; the lowest is ${cells.lowest[lowest]} with ${percent(main.low[lowest])}.`,
      columns: single ? ["Shard", mainName, "Confidence", "Images", "Quarantined"]
        : ["From", "To", "Lowest", "Shards", `${mainName}: low`, "median", "high", "Images", "Quarantined"],
      wide: single ? 1 : 3,
      rows: () => places.map((i) => (single
        ? [cells.first[i], percent(main.mid[i]), percent(cells.confidence.mid[i]), count(cells.images[i]), count(cells.failures[i])]
        : [cells.first[i], cells.last[i], cells.lowest[i], count(cells.shards[i]), percent(main.low[i]), percent(main.mid[i]),
          percent(main.high[i]), count(cells.images[i]), count(cells.failures[i])])),
      option: () => ({
        ...base(), grid,
        legend: legend({ data: data.scored ? ["Mean IoU", "Mean confidence"] : ["Mean confidence"] }),
        tooltip: { ...base().tooltip, axisPointer: { type: "line", lineStyle: { color: colour("edge") } }, formatter: ([{ dataIndex: i }]) =>
          lines(title(i), data.scored ? `mean IoU ${range(cells.iou, i)}` : "", `confidence ${range(cells.confidence, i)}`, ...about(i)) },
        xAxis: x(), dataZoom: zoom(places.length > 14),
        yAxis: axis({ type: "value", ...around(data.scored ? [main.low, main.high, cells.confidence.low, cells.confidence.high] : [main.low, main.high]),
          axisLabel: { color: colour("muted"), formatter: (v) => percent(v, 0) } }),
        series: [...(single ? [] : band(main)), scatter(mainName, main, 0, "circle"),
          ...(data.scored ? [scatter("Mean confidence", cells.confidence, 1, "triangle")] : [])],
      }),
    });

    const stages = ["read", "decode", "forward", "write"].filter((s) => s in cells.seconds)
      .concat(Object.keys(cells.seconds).filter((s) => !["read", "decode", "forward", "write"].includes(s)));
    const perImage = (stage, i) => (cells.images[i] ? cells.seconds[stage][i] / cells.images[i] : 0);
    draw("time-chart", {
      group: "shards",
      words: `Stages: ${stages.join(", ")}.`,
      columns: ["Shard", ...stages.map((s) => `${s}, s per image`)],
      rows: () => places.map((i) => [title(i), ...stages.map((s) => perImage(s, i).toFixed(4))]),
      option: () => ({
        ...base(), grid,
        legend: legend({ data: stages }),
        tooltip: { ...base().tooltip, formatter: ([{ dataIndex: i }]) =>
          lines(title(i), ...stages.map((s) => `${s}: ${perImage(s, i).toPrecision(3)} s per image`)) },
        xAxis: x(), dataZoom: zoom(places.length > 14),
        yAxis: axis({ type: "value", name: "s per image", axisLabel: { color: colour("muted") } }),
        series: stages.map((stage, s) => ({
          name: stage, type: "bar", stack: "time", barMaxWidth: 26, barCategoryGap: places.length > 200 ? "0%" : "25%", color: palette[s % palette.length],
          itemStyle: { decal: places.length > 100 ? undefined : pattern(s) }, data: places.map((i) => perImage(stage, i)),
        })),
      }),
    });
    histogram("iou-chart", data.ious.map((_, i) => `${percent(i / data.ious.length, 0)}–${percent((i + 1) / data.ious.length, 0)}`), data.ious, "shards");
  };

  // --- distributions of images
  const images = () => {
    const { confidence, size, share } = data.histograms;
    const select = by("share-class");
    histogram("confidence-chart", confidence.bins, confidence.counts, "images");
    histogram("size-chart", size.bins, size.counts, "images");
    if (!select) return;
    select.append(...names.map((name, k) => element("option", { value: String(k) }, name)));
    select.value = data.firstIsBackground && names.length > 1 ? "1" : "0";
    const repaint = histogram("class-chart", share.bins, () => share.counts[Number(select.value)], "images",
      () => data.colours[Number(select.value)]);
    select.addEventListener("change", repaint);
  };

  // --- runs
  const runs = () => {
    const rows = data.runs;
    const line = (name, key, symbol, stroke) => ({ name, type: "line", data: rows.map((run) => run[key]), symbol, symbolSize: 8,
      showAllSymbol: true, connectNulls: true, color: stroke });
    const shown = [...(data.scored ? [line("Mean IoU of the run", "iou", "circle", colour("good")),
      line("Mean IoU of the output", "total_iou", "diamond", colour("muted"))] : []),
    line("Mean confidence", "confidence", "triangle", colour("bad"))];
    draw("run-chart", {
      words: `${rows.length} runs, from ${rows[0]?.started} to ${rows.at(-1)?.started}.`,
      columns: ["Began (UTC)", ...shown.map(({ name }) => name)],
      rows: () => rows.map((run) => [run.started, ...(data.scored ? [percent(run.iou), percent(run.total_iou)] : []), percent(run.confidence)]),
      option: () => ({
        ...base(),
        grid: { left: 52, right: 16, top: 34, bottom: 30 },
        legend: legend({ data: shown.map(({ name }) => name) }),
        tooltip: { ...base().tooltip, axisPointer: { type: "line" }, formatter: ([{ dataIndex: i }]) => lines(rows[i].started,
          data.scored ? `mean IoU of the run ${percent(rows[i].iou)}` : "", data.scored ? `of the output ${percent(rows[i].total_iou)}` : "",
          `confidence ${percent(rows[i].confidence)}`, `${count(rows[i].images)} images`, ...rows[i].drifted.map((reason) => `drift: ${reason}`)) },
        xAxis: axis({ type: "category", data: rows.map((run) => run.started.slice(0, 16)), axisLabel: { color: colour("muted"), hideOverlap: true } }),
        yAxis: axis({ type: "value", ...around(shown.map((series) => series.data)),
          axisLabel: { color: colour("muted"), formatter: (v) => percent(v, 0) } }),
        series: shown,
      }),
    });
  };

  // --- a histogram; call the returned function after a change of its counts
  const histogram = (id, bins, given, what, fill = () => colour("good")) => {
    const now = () => (typeof given === "function" ? given() : given);
    const counts = now();
    const total = counts.reduce((a, b) => a + b, 0);
    const paint = draw(id, {
      words: `${count(total)} ${what}; most of them: ${bins[counts.indexOf(Math.max(...counts))]}.`,
      columns: ["From–to", what],
      rows: () => bins.map((bin, i) => [bin, count(now()[i])]),
      option: () => ({
        ...base(),
        grid: { left: 60, right: 16, top: 12, bottom: 28 },
        tooltip: { ...base().tooltip, formatter: ([{ dataIndex: i }]) => lines(bins[i], `${count(now()[i])} ${what} (${percent(now()[i] / total)})`) },
        xAxis: axis({ type: "category", data: bins, axisLabel: { color: colour("muted"), hideOverlap: true } }),
        yAxis: axis({ type: "value", minInterval: 1 }),
        series: [{ type: "bar", barCategoryGap: "8%", color: fill(), itemStyle: { borderColor: colour("edge"), borderWidth: 1 }, data: now() }],
      }),
    });
    return paint;
  };

  // --- confusion
  const confusion = () => {
    if (!by("matrix")) return;
    const counts = data.confusion;
    const size = names.length;
    const rowSums = counts.map((row) => row.reduce((a, b) => a + b, 0));
    const columnSums = counts[0].map((_, j) => counts.reduce((sum, row) => sum + row[j], 0));
    const most = Math.max(...counts.map((row) => Math.max(...row)));
    const share = { row: (i, j) => counts[i][j] / rowSums[i], column: (i, j) => counts[i][j] / columnSums[j], pixels: (i, j) => counts[i][j] / most };
    const unit = () => by("matrix-unit").value;
    const whole = (value) => (value < 0.005 ? "<1" : (100 * value).toFixed(0));
    const short = (value) => new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 }).format(value);
    const reading = (i, j) => `Truth ${names[i]}, predicted as ${names[j]}: ` + (counts[i][j]
      ? `${percent(counts[i][j] / rowSums[i], 2)} of the truth, ${percent(counts[i][j] / columnSums[j], 2)} of the masks, ${count(counts[i][j])} pixels`
      : rowSums[i] ? "never" : "not in the truth");
    const range = [0, 100];
    let at = null;
    let chart = null;

    const mistakes = [];
    counts.forEach((row, i) => row.forEach((n, j) => { if (i !== j && n) mistakes.push([n, i, j]); }));
    mistakes.sort((a, b) => b[0] - a[0]);
    by("mistakes").tBodies[0].append(...mistakes.slice(0, 15).map(([n, i, j]) => element("tr", {},
      element("th", { scope: "row", class: "class" }, swatch(i), element("span", {}, names[i])),
      element("td", { class: "class" }, swatch(j), element("span", {}, names[j])),
      element("td", { class: "n" }, percent(n / rowSums[i])), element("td", { class: "n" }, count(n)))));

    const holder = by("matrix");
    const letters = Math.max(...names.map((name) => cut(name, 16).length));
    const margin = 14 + 6.6 * letters;
    const tall = (width) => Math.min(Math.max(300, width - margin * 0.4), 640);
    const fit = () => { if (holder.clientWidth) holder.style.height = `${tall(holder.clientWidth)}px`; };
    fit();
    const visible = () => Math.max(1, (size * (range[1] - range[0])) / 100);
    const hasText = (width) => (width - margin) / visible() > (unit() === "pixels" ? 38 : 27);
    // A custom series: the heat map of the library spreads many cells over many frames.
    const scale = () => (getComputedStyle(document.documentElement).colorScheme === "dark"
      ? ["#1b2330", "#1d3f66", "#2a69a8", "#5ba3e6", "#b9dcff"] : ["#f3f6fa", "#c3dbf3", "#7fb2e3", "#2f74bd", "#0a3161"])
      .map((hex) => [1, 3, 5].map((at) => Number.parseInt(hex.slice(at, at + 2), 16)));
    const blend = (stops, value) => {
      const at = Math.min(stops.length - 1.001, value * (stops.length - 1));
      const [low, high] = [stops[Math.floor(at)], stops[Math.floor(at) + 1]];
      return `rgb(${low.map((channel, c) => Math.round(channel + (high[c] - channel) * (at % 1))).join()})`;
    };
    const ink = (value) => { // dark scale turns light, light scale turns dark
      const light = getComputedStyle(document.documentElement).colorScheme !== "dark";
      return light === (value < 0.6) ? "#0c1117" : "#fff";
    };
    const side = (more) => axis({ type: "category", data: names.map((name) => cut(name, 16)), splitLine: { show: false }, axisLine: { show: false }, ...more });
    const option = (width) => {
      const cells = [];
      const stops = scale();
      counts.forEach((row, i) => row.forEach((n, j) => {
        if (n) cells.push([j, i, Math.sqrt(share[unit()](i, j))]);
      }));
      const square = (api, style, words) => {
        const [across, down] = api.size([1, 1]);
        const [x, y] = api.coord([api.value(0), api.value(1)]);
        const gap = style.stroke || size > 40 ? 0 : 1;
        return {
          type: "rect", shape: { x: x - across / 2, y: y - down / 2, width: across - gap, height: down - gap }, style,
          emphasis: { style: { stroke: colour("accent"), lineWidth: 2 } }, z2: style.stroke ? 2 : 1,
          textConfig: { position: "inside" }, ...(words ? { textContent: { style: { ...words, fontSize: 11, textAlign: "center", textVerticalAlign: "middle" } } } : {}),
        };
      };
      const drawCell = (params, api) => {
        const [j, i, value] = [0, 1, 2].map((d) => api.value(d));
        const text = unit() === "pixels" ? short(counts[i][j]) : whole(share[unit()](i, j));
        const edge = i === j ? { stroke: colour("text"), lineWidth: size > 40 ? 0.5 : 1.25 } : {};
        return square(api, { fill: blend(stops, value), ...edge }, hasText(width) ? { text, fill: ink(value) } : null);
      };
      const inside = (more) => ({ type: "inside", start: range[0], end: range[1], zoomOnMouseWheel: "ctrl", moveOnMouseWheel: false,
        preventDefaultMouseMove: false, filterMode: "none", ...more });
      return {
        ...base(),
        grid: { left: margin, right: 8, top: margin * 0.78 + 12, bottom: 8, show: true, backgroundColor: colour("page"), borderColor: colour("line") },
        tooltip: { ...base().tooltip, trigger: "item", formatter: ({ value: [j, i] }) => lines(`${names[i]} → ${names[j]}`,
          `${percent(counts[i][j] / rowSums[i], 2)} of the truth`, `${percent(counts[i][j] / columnSums[j], 2)} of the masks`, `${count(counts[i][j])} pixels`) },
        xAxis: side({ position: "top", axisLabel: { color: colour("text"), rotate: 55, interval: visible() > 45 ? "auto" : 0, fontSize: visible() > 45 ? 10 : 12 } }),
        yAxis: side({ inverse: true, axisLabel: { color: colour("text"), interval: visible() > 45 ? "auto" : 0, hideOverlap: true, fontSize: visible() > 45 ? 10 : 12 } }),
        dataZoom: [inside({ xAxisIndex: 0 }), inside({ yAxisIndex: 0 })],
        series: [
          { type: "custom", progressive: 0, clip: true, encode: { x: 0, y: 1 }, data: cells, renderItem: drawCell },
          { type: "custom", silent: true, clip: true, encode: { x: 0, y: 1 }, data: at ? [[at[1], at[0]]] : [],
            renderItem: (params, api) => square(api, { fill: "none", stroke: colour("bad"), lineWidth: 3 }, null) },
        ],
      };
    };
    draw("matrix", { option, tall: (width) => Math.min(tall(width), size > 20 ? 640 : 520) });
    holder.addEventListener("drawn", (event) => {
      ({ chart } = event.detail);
      let wasMany = visible() > 45;
      chart.on("datazoom", () => {
        const [found] = chart.getOption().dataZoom;
        range[0] = found.start; range[1] = found.end;
        const many = visible() > 45;
        if (many !== wasMany) {
          wasMany = many;
          const label = { axisLabel: { interval: many ? "auto" : 0, fontSize: many ? 10 : 12 } };
          chart.setOption({ xAxis: label, yAxis: label });
        }
      });
      chart.on("mouseover", ({ seriesIndex, value }) => { if (seriesIndex === 0) by("matrix-cell").textContent = reading(value[1], value[0]); });
    });
    const zoomTo = (factor) => {
      const centre = factor === 0 ? 50 : (range[0] + range[1]) / 2;
      const width = factor === 0 ? 100 : Math.min(100, Math.max(100 * Math.min(1, 4 / size), (range[1] - range[0]) * factor));
      const start = Math.min(100 - width, Math.max(0, centre - width / 2));
      chart?.dispatchAction({ type: "dataZoom", batch: [0, 1].map((dataZoomIndex) => ({ dataZoomIndex, start, end: start + width })) });
    };
    by("matrix-in").addEventListener("click", () => zoomTo(0.6));
    by("matrix-out").addEventListener("click", () => zoomTo(1 / 0.6));
    by("matrix-reset").addEventListener("click", () => zoomTo(0));
    by("matrix-unit").addEventListener("change", () => chart?.setOption(option(holder.clientWidth), true));
    addEventListener("resize", fit);
    holder.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (event.key === "+" || event.key === "=") zoomTo(0.6);
      else if (event.key === "-") zoomTo(1 / 0.6);
      else if (event.key === "0") zoomTo(0);
      if (!step || !chart) return;
      event.preventDefault();
      at = at ? [0, 1].map((d) => Math.min(size - 1, Math.max(0, at[d] + step[d]))) : [0, 0];
      by("matrix-cell").textContent = reading(...at);
      chart.setOption(option(holder.clientWidth), true);
    });
  };

  shares();
  if (by("shards")) shards();
  if (by("images")) images();
  if (by("run-chart")) runs();
  confusion();
})();
