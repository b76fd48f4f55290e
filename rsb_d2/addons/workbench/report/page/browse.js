"use strict";

const BLUE = "#2563c9";
const PALE = "#c9d8f2";
const PAGE = 24; // images shown at a time
const state = {
  cls: null, // index of a class; null for all
  odd: null, // index of an oddity; null for all images
  masks: data.counts.masks > 0,
  sort: { column: 1, descending: true },
  shown: PAGE,
};

function update(change) {
  Object.assign(state, { shown: PAGE }, change);
  render();
}

const chooseClass = (k) => update({ cls: k === state.cls ? null : k });
const stats = () => (state.cls === null ? data.stats[data.classes.length] : data.stats[state.cls]);
const oddities = Object.keys(data.oddities);
const number = (v) => (v >= 100 ? v.toFixed(0) : v.toFixed(1));
const ratioText = (v) => v.toFixed(2);

// Hues of neighboring classes are far apart.
const colorOf = (k) => `hsl(${Math.round((k * 137.5 + 210) % 360)}, 70%, 38%)`;

function renderBar() {
  byId("class").value = state.cls === null ? "" : String(state.cls);
  byId("reset").hidden = state.cls === null;
  byId("shapes").hidden = !data.counts.masks;
  byId("shapes").replaceChildren(...[["Boxes", false], ["Boxes and masks", true]].map(([name, masks]) =>
    element("button", { "aria-pressed": String(masks === state.masks), onclick: () => update({ masks }) }, name)));
}

function renderTiles() {
  const { objects, images, size, ratio, cover } = stats();
  const missing = (v, text) => (v === null ? "–" : text(v));
  const tiles = [
    ["objects", count(objects), "objects"], ["images with them", count(images), "images"],
    ["median size, px", missing(size, number), "size"], ["median height / width", missing(ratio, ratioText), "ratio"],
  ];
  if (cover) data.anchorIous.forEach((iou, i) => tiles.push([`% best anchor ≥ ${iou}`, percent(cover[0][i]), `iou${iou}`]));
  byId("tiles").replaceChildren(...tiles.map(([name, value, key], i) =>
    element("div", { class: i === 0 ? "tile main" : "tile", "data-figure": key },
      element("b", {}, value), element("span", {}, name))));
}

function renderTable() {
  const whole = { format: count };
  const columns = [
    { name: "class" }, { name: "objects", ...whole }, { name: "images", ...whole },
    { name: "median size", title: "square root of the area, in pixels", format: number },
    { name: "height / width", title: "median", format: ratioText },
  ];
  if (data.config) {
    for (const iou of data.anchorIous) {
      columns.push({
        name: `% anchor ≥ ${iou}`, title: `boxes whose best anchor has IoU ${iou} or more`,
        format: percent, share: true,
      });
    }
  }
  const values = (s) => [s.objects, s.images, s.size, s.ratio, ...(s.cover ? s.cover[0] : [])];
  const rows = data.classes.map((name, k) => ({ key: k, name, values: values(data.stats[k]) }));
  rows.push({ key: null, name: "all classes", all: true, values: values(data.stats[data.classes.length]) });
  drawTable(byId("table"), columns, rows, state.sort, state.cls, (sort) => update({ sort }),
    (key) => (key === null ? update({ cls: null }) : chooseClass(key)));
}

function renderCounts() {
  const order = data.classes.map((_, k) => k).sort((a, b) => data.stats[b].objects - data.stats[a].objects);
  draw("counts", [{
    type: "bar", x: order.map((k) => plain(data.classes[k])), y: order.map((k) => data.stats[k].objects),
    customdata: order,
    marker: { color: order.map((k) => (state.cls === null || k === state.cls ? BLUE : PALE)) },
    hovertemplate: "%{x}: %{y} objects<extra></extra>",
  }], {
    margin: { l: 48, r: 14, t: 10, b: 24 },
    xaxis: { type: "category", tickangle: order.length > 8 ? -60 : "auto" },
    yaxis: { title: { text: "objects" }, rangemode: "tozero" }, bargap: order.length < 10 ? 0.4 : 0.2,
  }, (point) => chooseClass(point.customdata));
}

// A histogram with edges on a logarithmic scale.
function renderHistogram(id, counts, edges, ticks, title, lines = []) {
  const logs = edges.map(Math.log2);
  const used = counts.map((n, i) => (n ? i : null)).filter((i) => i !== null);
  const [first, last] = [used[0] || 0, used.length ? used[used.length - 1] + 1 : edges.length - 1];
  const shown = ticks.filter((t) => Math.log2(t) >= logs[first] - 1.01 && Math.log2(t) <= logs[last] + 1.01);
  draw(id, [{
    type: "bar", x: counts.map((_, i) => (logs[i] + logs[i + 1]) / 2), y: counts,
    width: counts.map((_, i) => 0.92 * (logs[i + 1] - logs[i])), marker: { color: BLUE },
    text: counts.map((_, i) => `${edges[i].toPrecision(3)} … ${edges[i + 1].toPrecision(3)}`),
    textposition: "none", hovertemplate: "%{text}: %{y}<extra></extra>",
  }], {
    xaxis: {
      title: { text: title }, tickvals: shown.map(Math.log2),
      ticktext: shown.map((t) => (t < 1 ? `1/${1 / t}` : String(t))),
      range: [logs[first] - 0.5, logs[last] + 0.5],
    },
    yaxis: { title: { text: "objects" }, rangemode: "tozero" },
    shapes: lines.map((v) => ({
      type: "line", x0: Math.log2(v), x1: Math.log2(v), y0: 0, y1: 1, yref: "paper",
      line: { color: "#d9483b", width: 1, dash: "dot" },
    })),
  });
}

function renderAnchors() {
  const { ious, cover } = stats();
  byId("anchors-hint").textContent = cover
    ? `IoU of each box with its best anchor, images resized to ${data.config.shortSide || "their own size"} ` +
      `(at most ${data.config.maxSize}) pixels.`
    : "Give --config-file to see how well its anchors cover the boxes.";
  byId("anchors").hidden = !cover;
  if (!cover) return;
  const { ious: edges } = data.edges;
  const groups = ["all", "small", "medium", "large"];
  const lines = groups.map((name, g) => [name, cover[g]]).filter(([, c]) => c[0] !== null)
    .map(([name, c]) => `${name}: ${data.anchorIous.map((t, i) => `${percent(c[i], 0)}% ≥ ${t}`).join(", ")}`);
  draw("anchors", [{
    type: "bar", x: ious.map((_, i) => (edges[i] + edges[i + 1]) / 2), y: ious,
    width: ious.map((_, i) => 0.92 * (edges[i + 1] - edges[i])), marker: { color: BLUE },
    hovertemplate: "%{x:.2f}: %{y}<extra></extra>",
  }], {
    margin: { l: 48, r: 14, t: 10 + 17 * lines.length, b: 42 },
    xaxis: { title: { text: "IoU" }, range: [0, 1], dtick: 0.1 },
    yaxis: { title: { text: "objects" }, rangemode: "tozero" },
    annotations: [{
      text: lines.join("<br>"), showarrow: false, xref: "paper", yref: "paper", x: 0, y: 1,
      xanchor: "left", yanchor: "bottom", align: "left",
    }],
  });
}

function renderGallery() {
  byId("odd").hidden = !oddities.length;
  byId("odd").replaceChildren(...[null, ...oddities.keys()].map((i) => element("button", {
    "aria-pressed": String(i === state.odd), onclick: () => update({ odd: i }),
  }, i === null ? "all" : `${oddities[i]} (${count(data.oddities[oddities[i]])})`)));
  const images = data.images.filter((image) =>
    (state.odd === null || image.odd.includes(state.odd)) &&
    (state.cls === null || image.truth.some((t) => t.c === state.cls)));
  const cards = images.slice(0, state.shown).map((image) => {
    const shapes = image.truth.map((t) => ({
      box: t.b, path: state.masks ? t.p : null, color: colorOf(t.c), dash: t.crowd,
      label: data.classes[t.c], faint: state.cls !== null && t.c !== state.cls,
      title: `${data.classes[t.c]}${t.crowd ? ", crowd" : ""}, id ${t.id}`,
    }));
    return element("figure", {}, element("div", { class: "side" }, drawImage(image, shapes)),
      element("figcaption", {}, element("span", { title: image.file }, image.file),
        element("span", {}, `${image.w} × ${image.h}, ${plural(image.truth.length, "object")}`)));
  });
  if (!cards.length) cards.push(element("p", { class: "empty" }, "No image on this page matches."));
  byId("gallery").replaceChildren(...cards);
  byId("more").hidden = images.length <= state.shown;
}

function render() {
  renderBar();
  renderTiles();
  renderTable();
  renderCounts();
  const { sizes, ratios } = stats();
  renderHistogram("sizes", sizes, data.edges.sizes, [2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048],
    "size (pixels)", [32, 96]);
  renderHistogram("ratios", ratios, data.edges.ratios, [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16],
    "height / width", [1]);
  renderAnchors();
  renderGallery();
}

const { images, objects, crowds, masks } = data.counts;
byId("summary").textContent =
  `${data.annotations} · ${plural(images, "image")} · ${plural(objects, "object")} of ` +
  `${data.classes.length} ${data.classes.length === 1 ? "class" : "classes"}` +
  (crowds ? ` · ${plural(crowds, "crowd")}` : "") + ` · ${plural(masks, "mask")}`;
fillNotes();
fillClassSelect((cls) => update({ cls }));
byId("reset").addEventListener("click", () => update({ cls: null }));
byId("more").addEventListener("click", () => { state.shown += PAGE; renderGallery(); });
render();
document.documentElement.dataset.ready = "true";
