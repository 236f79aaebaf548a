"use strict";

/* The data, written by html_page.py:
   {title, weights: [{label, about, source, version}], ranked_by: index of the weights that sort the images at first,
    versions: ["LR", ..., "HR", ...], compared: how many of them show the image itself (the others are extra pictures,
    explained by note), references: the versions of HR, if any, and of bicubic, benchmarks: [{name, weights: indices of those of its scale, metrics: [{name,
    title, decimals, lower_is_better}], tables: [{title, columns, rows: [{name, cells: [{text, best}], aside}],
    caption}], remarks, images: [{name, scores: [of each weights, by metric], files, pictures: null if not embedded, or
    {numbers: [of each version, null if missing], size: [width, height], scale, thumbnail}}]}]}
   Names become text, never markup. */
const report = JSON.parse(document.getElementById("report").textContent);
const pageIsRead = new Promise(done => document.addEventListener("DOMContentLoaded", done));
const names = new Intl.Collator(undefined, {numeric: true});

const byId = id => document.getElementById(id);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

const colour = weights => `--colour: var(--series-${weights % 8})`;
const swatch = weights =>
  element("span", {className: "swatch", style: colour(weights), ariaHidden: "true", textContent: "●\u00a0"});

// JSON has no infinity, which is passed as a string. Missing scores have no entry.
const score = (image, weights, metric) => Number(image.scores[weights][metric.name] ?? NaN);

function asText(value, metric) {
  if (Number.isFinite(value)) return value.toFixed(metric.decimals);
  return Number.isNaN(value) ? "–" : "∞";
}


/* ---- The page: tables, scatter plot and list of images of each benchmark ---- */

function benchmarkSection(benchmark, number) {
  const section = byId("benchmark").content.cloneNode(true).firstElementChild;
  const within = selector => section.querySelector(selector);
  const count = `${benchmark.images.length} image${benchmark.images.length === 1 ? "" : "s"}`;
  section.id = `benchmark-${number}`;
  within("h2").append(benchmark.name, " ", element("small", {textContent: count}));
  const [means, ...differences] = benchmark.tables.map(scoreTable);
  if (means) within(".overview").prepend(means);
  within(".overview").append(...differences);
  drawScatter(within(".scatter"), benchmark);
  within(".remarks").append(...benchmark.remarks.map(remark => element("li", {textContent: remark})));
  fillImages(within(".images table"), benchmark);
  return section;
}

function scoreTable({title, columns, rows, caption}) {
  const header = [title, ...columns].map(text => element("th", {scope: "col", textContent: text}));
  const table = element("table", {}, element("tr", {}, ...header));
  for (const {name, cells, aside} of rows) {
    const weights = report.weights.findIndex(({label}) => label === name);
    table.append(element("tr", {className: aside ? "aside" : ""},
      element("th", {scope: "row"}, ...(aside ? [] : [swatch(weights)]), name),
      ...cells.map(({text, best}) => element("td", {}, best ? element("strong", {textContent: text}) : text))));
  }
  return element("div", {className: "means"},
    element("div", {className: "scroll", tabIndex: 0, role: "region", ariaLabel: title}, table),
    element("p", {className: "faint", textContent: caption}));
}

function fillImages(table, benchmark) {
  const {metrics} = benchmark;
  const columns = benchmark.weights.flatMap(weights => metrics.map(metric => ({weights, metric})));
  const edge = metric => (metric === metrics[0] ? "edge" : "");
  const sorted = {column: null, bestFirst: false};
  benchmark.shown = [...benchmark.images]; // in the order of the table, which the viewer uses too

  const groups = benchmark.weights.map(number => {
    const {label} = report.weights[number];
    const properties = {scope: "colgroup", className: "edge", colSpan: metrics.length, title: label};
    return element("th", properties, swatch(number), label);
  });
  const headers = [null, ...columns].map(column => {
    const button = element("button", {title: "sort by name", textContent: "Image", onclick: () => sort(column)});
    if (!column) return element("th", {scope: "col"}, button);
    const {weights, metric} = column;
    const ariaLabel = `${metric.title} of ${report.weights[weights].label}`;
    Object.assign(button, {title: "sort worst first, then best first", textContent: metric.title, ariaLabel});
    return element("th", {scope: "col", className: edge(metric)}, button);
  });
  if (metrics.length) table.tHead.append(element("tr", {}, element("th"), ...groups));
  else table.className = "names";
  table.tHead.append(element("tr", {}, ...headers));

  const rows = new Map(benchmark.images.map(image => {
    const thumbnail = image.pictures?.thumbnail;
    const open = element("button", {title: image.name}, element("span", {textContent: image.name}));
    if (thumbnail) open.prepend(element("img", {className: "thumbnail", alt: "", decoding: "async", src: thumbnail}));
    const cells = columns.map(({weights, metric}) =>
      element("td", {className: edge(metric), textContent: asText(score(image, weights, metric), metric)}));
    const onclick = () => openViewer(benchmark, image);
    return [image, element("tr", {onclick}, element("td", {}, open), ...cells)];
  }));

  function sort(column) {
    sorted.bestFirst = column !== null && sorted.column === column && !sorted.bestFirst;
    sorted.column = column;
    benchmark.shown.sort((a, b) => (column && byScore(a, b, sorted)) || names.compare(a.name, b.name));
    table.tBodies[0].append(...benchmark.shown.map(image => rows.get(image)));
    const ascending = !column || column.metric.lower_is_better === sorted.bestFirst;
    headers.forEach((header, number) => {
      const its = [null, ...columns][number] === column;
      header.ariaSort = its ? (ascending ? "ascending" : "descending") : null;
    });
  }

  sort(columns.find(({weights}) => weights === report.ranked_by) ?? columns[0] ?? null);
}

function byScore(a, b, {column: {weights, metric}, bestFirst}) {
  const [ofA, ofB] = [a, b].map(image => score(image, weights, metric));
  const rising = metric.lower_is_better === bestFirst ? 1 : -1;
  // Images without a score come last.
  return Number.isNaN(ofA) - Number.isNaN(ofB) || rising * ((ofA > ofB) - (ofA < ofB));
}

function drawScatter(figure, benchmark) {
  const {metrics} = benchmark;
  const named = name => metrics.find(metric => metric.name === name);
  const [across, up] = named("psnr") && named("lpips") ? [named("psnr"), named("lpips")] : metrics;
  const points = up ? benchmark.images.flatMap(image => report.weights.map((_, weights) =>
    ({image, weights, x: score(image, weights, across), y: score(image, weights, up)}),
  )).filter(({x, y}) => Number.isFinite(x) && Number.isFinite(y)) : [];
  if (!points.length) return figure.remove();

  const [svg, caption] = figure.children;
  const draw = (tag, attributes, text = "") => {
    const made = document.createElementNS(svg.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.textContent = text;
    return svg.appendChild(made);
  };
  const [left, right, top, bottom] = [48, 466, 30, 270];
  const x = axis(points.map(point => point.x), left, right);
  const y = axis(points.map(point => point.y), bottom, top);
  for (const tick of x.ticks) {
    draw("line", {x1: x.place(tick), x2: x.place(tick), y1: top, y2: bottom});
    draw("text", {x: x.place(tick), y: bottom + 17, "text-anchor": "middle"}, x.text(tick));
  }
  for (const tick of y.ticks) {
    draw("line", {x1: left, x2: right, y1: y.place(tick), y2: y.place(tick)});
    draw("text", {x: left - 7, y: y.place(tick) + 4, "text-anchor": "end"}, y.text(tick));
  }
  const [aside, upright] = [across.lower_is_better ? "←" : "→", up.lower_is_better ? "↓" : "↑"];
  draw("text", {x: right, y: bottom + 36, "text-anchor": "end"}, `${across.title}, better ${aside}`);
  draw("text", {x: 0, y: 14}, `${up.title}, better ${upright}`);
  svg.setAttribute("aria-label", `${up.title} against ${across.title}, one dot for each image and weights`);

  const showCaption = point => {
    for (const {image, dot} of points) dot.classList.toggle("same", image === point?.image);
    caption.textContent = point ? `${point.image.name}, ${report.weights[point.weights].label}: ` +
      `${across.title} ${asText(point.x, across)}, ${up.title} ${asText(point.y, up)}` :
      "One dot for each image; click a dot to open the image.";
  };
  for (const point of points) {
    point.dot = draw("circle", {cx: x.place(point.x), cy: y.place(point.y), r: 4.5, style: colour(point.weights)});
    point.dot.onpointerenter = () => showCaption(point);
    point.dot.onpointerleave = () => showCaption(null);
    point.dot.onclick = () => openViewer(benchmark, point.image, report.weights[point.weights].version);
  }
  showCaption(null);
}

// A linear scale from values to positions, and its ticks at round values.
function axis(values, from, to) {
  const span = Math.max(...values) - Math.min(...values);
  const margin = span * .06 || Math.abs(values[0]) * .05 || 1;
  const [low, high] = [Math.min(...values) - margin, Math.max(...values) + margin];
  const power = 10 ** Math.floor(Math.log10((high - low) / 8));
  const step = power * [1, 2, 5, 10].find(factor => factor * power >= (high - low) / 8);
  const ticks = [];
  for (let tick = Math.ceil(low / step); tick * step <= high; tick++) ticks.push(tick * step);
  const decimals = Math.max(0, -Math.floor(Math.log10(step)));
  const place = value => from + (value - low) / (high - low) * (to - from);
  return {ticks, place, text: tick => tick.toFixed(decimals)};
}


/* ---- The viewer: versions of one image, with the same zoom and pan ---- */

const [viewer, frame, stage, handle] = ["viewer", "frame", "stage", "handle"].map(byId);
const {version: first} = report.weights[report.ranked_by];
const view = {
  benchmark: null, image: null, urls: new Map(), // of the image's pictures, by number
  mode: "wipe", left: first - 1, right: first, error: false,
  zoom: 1, x: 0, y: 0, fitted: true, // CSS pixels per SR pixel; SR point in the center; until zoomed or panned
  wipe: 50, gain: 4, // percent of the width; factor of the error map
  request: 0, // number of the latest request
};

function openViewer(benchmark, image, right = view.right) {
  Object.assign(view, {benchmark, right});
  offerVersions(benchmark);
  stage.replaceChildren();
  viewer.showModal();
  showImage(image);
}

// Weights of another scale have no pictures of this benchmark.
function offerVersions(benchmark) {
  const elsewhere = new Set(report.weights.map(({version}) => version));
  const ours = benchmark.weights.map(weights => report.weights[weights].version);
  for (const version of ours) elsewhere.delete(version);
  for (const side of ["left", "right"])
    for (const option of byId(side).options) option.hidden = option.disabled = elsewhere.has(Number(option.value));
  if (elsewhere.has(view.right)) view.right = ours.at(-1);
  if (elsewhere.has(view.left))
    view.left = report.versions.findLastIndex((_, version) => version < view.right && !elsewhere.has(version));
}

function step(by) {
  const {shown} = view.benchmark;
  showImage(shown[(shown.indexOf(view.image) + by + shown.length) % shown.length]);
}

async function showImage(image) {
  const {shown, name} = view.benchmark;
  const before = view.urls;
  Object.assign(view, {image, urls: new Map(), fitted: true});
  byId("viewer-title").title = image.name;
  byId("viewer-title").replaceChildren(image.name, " ", element("small", {textContent: name}));
  byId("position").textContent = `${shown.indexOf(image) + 1} / ${shown.length}`;
  await arrange();
  for (const url of before.values()) url.then(URL.revokeObjectURL);
}

const isThere = (image, version) => Number.isInteger(image.pictures?.numbers[version]);

// Show the chosen versions once they are decoded. Until then the previous ones stay, which avoids flicker.
async function arrange() {
  const {image} = view;
  const request = ++view.request;
  const all = report.versions.map((_, version) => version).filter(version => isThere(image, version));
  const versions = view.mode === "grid" ? all : [view.left, view.right];
  stage.ariaBusy = "true";
  const layers = image.pictures ? await Promise.all(versions.map(layer)) : [notice(image)];
  if (request !== view.request) return; // superseded meanwhile
  stage.ariaBusy = "false";
  stage.replaceChildren(...layers);
  viewer.dataset.mode = image.pictures ? view.mode : "nothing";
  viewer.toggleAttribute("data-error", view.error);
  for (const side of ["left", "right"]) byId(side).value = view[side];
  for (const [name, on] of [["wipe", view.mode === "wipe"], ["grid", view.mode === "grid"], ["error", view.error]])
    viewer.querySelector(`[data-do=${name}]`).ariaPressed = String(on);
  applyView();
}

async function layer(version) {
  const {image} = view;
  const error = view.error && version < report.compared; // extra pictures have no error map
  const [width, height] = image.pictures.size;
  const reference = report.references.find(each => isThere(image, each)); // the same for all versions of an image
  const shown = error ? [version, reference] : [version];
  const found = shown.every(each => isThere(image, each)) ? shown : [];
  const pictures = await Promise.all(found.map(each => picture(image, each)));
  const weights = report.weights.findIndex(each => each.version === version);
  const scores = weights < 0 ? [] : view.benchmark.metrics.map(metric =>
    element("span", {}, ` · ${metric.title} ${asText(score(image, weights, metric), metric)}`));
  const compared = element("span", {}, `: difference to ${report.versions[reference]} `,
    element("span", {className: "times"}));
  const text = error ? [compared, ...scores] : scores;
  return element("figure", {className: "layer"},
    element("div", {className: "world", style: `width: ${width}px; height: ${height}px`},
      ...(error ? [difference(pictures, width, height)] : pictures)),
    element("figcaption", {}, report.versions[version], ...(found.length ? text : [": not available"])));
}

async function picture(image, version) {
  const {numbers, scale} = image.pictures;
  const made = element("img", {alt: `${image.name}, ${report.versions[version]}`, draggable: false});
  made.src = await urlOf(numbers[version]);
  await made.decode().catch(() => {}); // for a damaged file, the browser shows the alt text
  const enlarged = version === 0 ? scale : 1; // LR
  [made.width, made.height] = [made.naturalWidth * enlarged, made.naturalHeight * enlarged];
  return made;
}

// Computed at full size: shrinking first would reduce the difference.
function difference(pictures, width, height) {
  const canvas = element("canvas", {width, height, role: "img", ariaLabel: "Error map"});
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  for (const made of pictures.filter(({naturalWidth}) => naturalWidth)) {
    context.drawImage(made, 0, 0, made.width, made.height);
    context.globalCompositeOperation = "difference";
  }
  return canvas;
}

function urlOf(number) {
  if (!view.urls.has(number)) view.urls.set(number, makeUrl(number));
  return view.urls.get(number);
}

async function makeUrl(number) {
  if (!byId(`picture-${number}`)?.nextSibling) await pageIsRead;
  const bytes = Uint8Array.from(atob(byId(`picture-${number}`).textContent), char => char.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes])); // PNG, JPEG or WebP, which browsers tell apart by the content
}

function notice(image) {
  const files = image.files.map(file => element("code", {textContent: file}));
  return element("div", {className: "notice"},
    element("p", {textContent: `The pictures of ${image.name} are not embedded, to limit the size of this ` +
      "report. The SR images are in"}), ...files);
}

// Set zoom, pan and wipe as style variables, which all layers share.
function applyView() {
  if (!stage.hasChildNodes()) return;
  const [width, height] = view.image.pictures?.size ?? [1, 1];
  const box = frame.getBoundingClientRect();
  const count = stage.children.length;
  const columns = clamp(Math.round(Math.sqrt(count * box.width / box.height)), 1, count);
  frame.style.setProperty("--columns", columns);
  if (view.fitted) {
    const layer = stage.firstElementChild.getBoundingClientRect();
    const fit = Math.min(layer.width / width, layer.height / height);
    Object.assign(view, {zoom: fit > 1 ? Math.floor(fit) : fit, x: width / 2, y: height / 2}); // integer factor
  }
  view.x = clamp(view.x, 0, width);
  view.y = clamp(view.y, 0, height);
  for (const name of ["zoom", "x", "y", "wipe", "gain"]) frame.style.setProperty(`--${name}`, view[name]);
  frame.toggleAttribute("data-enlarged", view.zoom >= 1);
  handle.ariaValueNow = String(Math.round(view.wipe));
  byId("zoom").textContent = `${Math.round(view.zoom * 100)} %`;
  for (const times of stage.getElementsByClassName("times")) times.textContent = `×${view.gain}`;
  byId("gain").nextElementSibling.textContent = `× ${view.gain}, white: ${Math.ceil(255 / view.gain)} levels`;
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

// Zoom around a point of the window; by default around the center of the first layer.
function zoomBy(factor, clientX, clientY) {
  const boxes = [...stage.children].map(layer => layer.getBoundingClientRect());
  const box = boxes.find(({left, right, top, bottom}) =>
    left <= clientX && clientX < right && top <= clientY && clientY < bottom);
  const [x, y] = box ? [clientX - box.left - box.width / 2, clientY - box.top - box.height / 2] : [0, 0];
  const before = view.zoom;
  view.zoom = clamp(before * factor, .02, 64);
  moveBy(x / view.zoom - x / before, y / view.zoom - y / before);
}

// Pan by SR pixels, to the right and down.
function moveBy(x, y) {
  Object.assign(view, {x: view.x - x, y: view.y - y, fitted: false});
  applyView();
}

function wipeTo(percent) {
  view.wipe = clamp(percent, 0, 100);
  applyView();
}

function choose(changes) {
  Object.assign(view, changes);
  arrange();
}

const actions = {
  close: () => viewer.close(),
  previous: () => step(-1),
  next: () => step(1),
  wipe: () => choose({mode: "wipe"}),
  grid: () => choose({mode: "grid"}),
  error: () => choose({error: !view.error}),
  zoomIn: () => zoomBy(2),
  zoomOut: () => zoomBy(1 / 2),
  fit: () => { view.fitted = true; applyView(); },
  help: () => byId("help").togglePopover(),
};
const keys = { // Esc is handled by the dialog
  ArrowLeft: "previous", ArrowRight: "next", w: "wipe", g: "grid", e: "error",
  "+": "zoomIn", "=": "zoomIn", "-": "zoomOut", 0: "fit", "?": "help",
};

viewer.addEventListener("click", event => actions[event.target.closest("[data-do]")?.dataset.do]?.());
viewer.addEventListener("keydown", event => {
  const ownKeys = event.target.matches("select") || (event.target === byId("gain") && event.key.startsWith("Arrow"));
  if (event.ctrlKey || event.metaKey || event.altKey || ownKeys) return;
  // The code, because with Shift the key is another character.
  const digit = Number(/^(?:Digit|Numpad)([1-9])$/.exec(event.code)?.[1]);
  const wiping = event.target === handle && {ArrowLeft: -2, ArrowRight: 2}[event.key];
  if (wiping) wipeTo(view.wipe + wiping);
  else if (digit <= report.versions.length) choose({mode: "wipe", [event.shiftKey ? "right" : "left"]: digit - 1});
  else if (event.key in keys) actions[keys[event.key]]();
  else return;
  event.preventDefault();
});
for (const side of ["left", "right"]) {
  byId(side).append(...report.versions.map((name, version) => new Option(`${version + 1}  ${name}`, version)));
  byId(side).onchange = event => {
    choose({mode: "wipe", [side]: Number(event.target.value)});
    frame.focus(); // otherwise the arrow keys would change the selection
  };
}
byId("gain").oninput = event => { view.gain = 2 ** event.target.value; applyView(); };
new ResizeObserver(applyView).observe(frame);

handle.onpointerdown = event => {
  event.preventDefault(); // keeps the focus
  handle.setPointerCapture(event.pointerId);
};
handle.onpointermove = event => {
  const {left, width} = frame.getBoundingClientRect();
  if (handle.hasPointerCapture(event.pointerId)) wipeTo((event.clientX - left) / width * 100);
};

const fingers = new Map(); // the last event of each pointer that is down
stage.onpointerdown = event => {
  if (!view.image.pictures) return;
  fingers.set(event.pointerId, event);
  stage.setPointerCapture(event.pointerId);
};
stage.onpointermove = event => {
  const before = fingers.get(event.pointerId);
  if (!before) return;
  const other = [...fingers.values()].find(finger => finger !== before);
  const toOther = finger => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) || 1;
  if (other) zoomBy(toOther(event) / toOther(before), other.clientX, other.clientY);
  else moveBy((event.clientX - before.clientX) / view.zoom, (event.clientY - before.clientY) / view.zoom);
  fingers.set(event.pointerId, event);
};
stage.onpointerup = stage.onpointercancel = event => fingers.delete(event.pointerId);
stage.addEventListener("wheel", event => {
  event.preventDefault();
  zoomBy(2 ** (-event.deltaY / 300), event.clientX, event.clientY);
}, {passive: false});


/* ---- Fill the page ---- */

document.title = report.title;
document.querySelector("h1").textContent = report.title;
document.querySelector(".weights").append(...report.weights.map(({label, about, source}, number) => {
  const words = [about, source].filter(Boolean).join(" · ");
  return element("li", {}, swatch(number), label, " ", element("span", {className: "faint", textContent: words}));
}));
for (const note of document.querySelectorAll(".note")) note.textContent = report.note;
document.querySelector("main").append(...report.benchmarks.map(benchmarkSection));
if (report.benchmarks.length > 1)
  document.querySelector("nav").append(...report.benchmarks.map(({name}, number) =>
    element("a", {href: `#benchmark-${number}`, textContent: name})));
