"use strict";

const COLORS = {
  correct: "#1f9d6b", Cls: "#8a63c9", Loc: "#e59a1c", Both: "#d05f9e", Dupe: "#3f94d8", Bkg: "#d9483b",
  Miss: "#6b7785",
};
const MEANINGS = {
  correct: "correct", Cls: "wrong class", Loc: "poorly placed", Both: "wrong class and poorly placed",
  Dupe: "duplicate", Bkg: "background", Miss: "missed object",
};
const BLUE = "#2563c9";
const GRAY = "#b3bdc8";
const PAGE = 12; // images shown at a time
const FIGURE_TITLES = [
  "mean over IoU 0.50 … 0.95", "at IoU 0.50", "at IoU 0.75", "small objects, below 32² pixels",
  "medium objects, below 96² pixels", "large objects", "recall with 1 detection per image",
  "recall with 10 detections per image", "recall with 100 detections per image",
  "recall of small objects", "recall of medium objects", "recall of large objects",
];

const state = {
  task: Object.keys(data.tasks)[0],
  cls: null, // index of a class; null for all
  error: null, // one of data.errors
  sort: { column: 1, descending: true },
  order: "worst",
  score: data.scoreThreshold,
  log: false,
  shown: PAGE,
};

function update(change) {
  Object.assign(state, { shown: PAGE }, change);
  render();
}

const task = () => data.tasks[state.task];
const chooseClass = (k) => update({ cls: k === state.cls ? null : k });
const className = () => (state.cls === null ? "all classes" : data.classes[state.cls]);
const recalls = Array.from({ length: 101 }, (_, i) => i / 100);

// ---- numbers ----

function renderBar() {
  const names = { bbox: "Boxes", segm: "Masks" };
  byId("tasks").replaceChildren(...Object.keys(data.tasks).map((name) => element("button", {
    "aria-pressed": String(name === state.task), onclick: () => update({ task: name }),
  }, names[name])));
  byId("class").value = state.cls === null ? "" : String(state.cls);
  byId("error-chip").hidden = state.error === null;
  byId("error-chip").textContent = state.error && `images with ${state.error}: ${MEANINGS[state.error]} ✕`;
  byId("reset").hidden = state.cls === null;
}

function renderTiles() {
  const figures = state.cls === null ? task().figures : task().classFigures[state.cls];
  byId("tiles").replaceChildren(...data.figures.map((name, i) => element("div", {
    class: i === 0 ? "tile main" : "tile", title: FIGURE_TITLES[i], "data-figure": name,
    "data-value": figures[i],
  }, element("b", {}, percent(figures[i], 2)), element("span", {}, name))));
}

function renderTable() {
  const whole = { format: count };
  const share = { format: percent, share: true, missing: "no such object" };
  const columns = [
    { name: "class" },
    ...data.figures.map((name, i) => ({ name, title: FIGURE_TITLES[i], ...share })),
    { name: "objects", ...whole }, { name: "detections", ...whole },
  ];
  const { figures, classFigures, objects, detections } = task();
  const rows = data.classes.map((name, k) => ({
    key: k, name, values: [...classFigures[k], objects[k], detections[k]],
  }));
  rows.push({
    key: null, name: "all classes", all: true, values: [...figures, sum(objects), sum(detections)],
  });
  drawTable(byId("table"), columns, rows, state.sort, state.cls, (sort) => update({ sort }),
    (key) => (key === null ? update({ cls: null }) : chooseClass(key)));
}

function renderBars() {
  byId("bars-card").hidden = data.classes.length < 2;
  const ap = (k) => task().classFigures[k][0];
  const classes = data.classes.map((_, k) => k).filter((k) => ap(k) !== null).sort((a, b) => ap(b) - ap(a));
  draw("bars", [{
    type: "bar", x: classes.map((k) => plain(data.classes[k])), y: classes.map((k) => 100 * ap(k)),
    customdata: classes,
    marker: { color: classes.map((k) => (state.cls === null || k === state.cls ? BLUE : "#c9d8f2")) },
    text: classes.map((k) => (classes.length <= 30 ? percent(ap(k)) : "")), textposition: "outside",
    cliponaxis: false, hovertemplate: "%{x}: AP %{y:.1f}<extra></extra>",
  }], {
    margin: { l: 48, r: 14, t: 18, b: 24 },
    xaxis: { type: "category", tickangle: classes.length > 14 ? -55 : "auto" },
    yaxis: { title: { text: "AP (%)" }, rangemode: "tozero" }, bargap: classes.length < 10 ? 0.5 : 0.25,
  }, (point) => chooseClass(point.customdata));
}

// ---- curves ----

function renderCurves() {
  const { curves } = task();
  const line = (y, name, line, hover = "") => y && {
    x: recalls, y, name, mode: "lines", line,
    hovertemplate: `${name}${hover}: recall %{x:.2f}, precision %{y:.3f}<extra></extra>`,
  };
  let traces;
  if (state.cls === null) {
    traces = data.ious.map((iou, t) => line(curves.all[t], `IoU ${iou.toFixed(2)}`, {
      width: 1.6, color: `rgba(29, 79, 159, ${(1 - 0.085 * t).toFixed(3)})`,
    }));
    traces.push(line(curves.mean, "mean", { width: 3, color: "#e4572e" }));
  } else {
    const own = curves.classes[state.cls];
    traces = own && [
      line(own[0], "IoU 0.50", { width: 2.2, color: "#1d4f9f" }),
      line(own[1], "IoU 0.75", { width: 2.2, color: "#6fa0e6" }),
      line(own[2], "mean", { width: 3, color: "#e4572e" }),
      line(curves.mean, "mean, all classes", { width: 1.5, color: GRAY, dash: "dot" }),
    ];
  }
  byId("curves-hint").textContent = `${className()}; each line is one IoU, the red one their mean.`;
  draw("curves", traces.filter(Boolean), {
    xaxis: { title: { text: "recall" }, range: [0, 1.005] },
    yaxis: { title: { text: "precision" }, range: [0, 1.02] },
    legend: { orientation: "v", x: 1.01, y: 1, font: { size: 11 } },
  });
}

function renderIous() {
  const { apByIou, classApByIou } = task();
  const line = (values, name, color, width) => ({
    x: data.ious, y: values.map((v) => v === null ? null : 100 * v), name, mode: "lines+markers",
    line: { color, width }, marker: { size: width + 4 },
    hovertemplate: `${name}: %{y:.1f} at IoU %{x:.2f}<extra></extra>`,
  });
  const traces = [line(apByIou, "all classes", state.cls === null ? BLUE : GRAY, state.cls === null ? 2.5 : 1.5)];
  if (state.cls !== null) traces.push(line(classApByIou[state.cls], plain(className()), BLUE, 2.5));
  draw("ious", traces, {
    xaxis: { title: { text: "IoU" }, dtick: 0.1 }, yaxis: { title: { text: "AP (%)" }, range: [0, 100] },
    showlegend: traces.length > 1,
  });
}

function renderSizes() {
  const { figures, classFigures, sizes } = task();
  const own = state.cls === null ? figures : classFigures[state.cls];
  const counts = [0, 1, 2].map((i) =>
    state.cls === null ? sum(sizes.map((s) => s[i])) : sizes[state.cls][i]);
  const labels = ["small", "medium", "large"].map((name, i) => `${name}<br>${plural(counts[i], "object")}`);
  const bars = (first, name, color) => {
    const values = [0, 1, 2].map((i) => own[first + i]);
    return {
      type: "bar", name, x: labels, y: values.map((v) => (v === null ? null : 100 * v)), marker: { color },
      text: values.map((v) => percent(v)), textposition: "outside", cliponaxis: false,
      hovertemplate: `${name} %{y:.1f}<extra></extra>`,
    };
  };
  draw("sizes", [bars(3, "AP", BLUE), bars(9, "AR", "#9dbdf0")], {
    yaxis: { title: { text: "%" }, range: [0, 108] }, xaxis: { type: "category" }, bargap: 0.35,
  });
}

// ---- errors ----

function renderErrors() {
  const { deltaAp, errorCounts, classErrorCounts } = task();
  const all = state.cls === null;
  const counts = all ? errorCounts : classErrorCounts[state.cls];
  const values = all ? deltaAp.map((v) => 100 * v) : counts;
  byId("errors-hint").textContent = (all
    ? "TIDE: the gain in AP50 if all errors of a kind were corrected."
    : `Errors of ${className()} at score ${data.scoreThreshold} or more. Their cost is computed for all classes together.`) +
    " Click a bar for the images with that error.";
  const wide = byId("errors").clientWidth > 420;
  const names = data.errors.map((e) =>
    wide ? `${e}  <span style="color:#8d99a6">${MEANINGS[e]}</span> ` : `${e} `);
  draw("errors", [{
    type: "bar", orientation: "h", y: names, x: values, customdata: data.errors,
    text: values.map((v, e) => (all ? `${v.toFixed(1)}  (${count(counts[e])})` : count(v))),
    textposition: "outside", cliponaxis: false,
    marker: {
      color: data.errors.map((e) => COLORS[e]),
      opacity: data.errors.map((e) => (state.error === null || e === state.error ? 1 : 0.3)),
    },
    hovertemplate: "%{customdata}: %{text}<extra></extra>",
  }], {
    margin: { l: 10, r: 76, t: 6, b: 42 },
    xaxis: {
      title: { text: all ? "gain in AP50 (number of errors)" : "number of errors" }, rangemode: "tozero",
      range: [0, Math.max(1, ...values.map((v) => 1.05 * v))],
    },
    yaxis: { autorange: "reversed", type: "category", ticks: "outside", ticklen: 4, tickcolor: "#fff" },
    bargap: 0.35,
  }, (point) => update({ error: point.customdata === state.error ? null : point.customdata }));
}

function renderScores() {
  const { histogram, calibrationError } = task();
  const num = histogram[0][0].length;
  const traces = data.kinds.map((kind, i) => ({
    type: "bar", name: kind, x: Array.from({ length: num }, (_, b) => (b + 0.5) / num),
    y: Array.from({ length: num }, (_, b) =>
      state.cls === null ? sum(histogram.map((h) => h[i][b])) : histogram[state.cls][i][b]),
    marker: { color: COLORS[kind] },
    hovertemplate: `${MEANINGS[kind]}: %{y}<extra></extra>`,
  }));
  byId("ece").textContent = percent(calibrationError);
  byId("scale").textContent = state.log ? "linear scale" : "log scale";
  draw("scores", traces, {
    barmode: state.log ? "group" : "stack",
    xaxis: { title: { text: "score" }, range: [0, 1], dtick: 0.1 },
    yaxis: { title: { text: "detections" }, type: state.log ? "log" : "linear", rangemode: "tozero" },
    bargap: 0.05,
  });
}

function renderConfusion() {
  const nothing = data.classes.length;
  const entries = task().confusion;
  let classes = data.classes.map((_, k) => k);
  if (state.cls !== null) {
    const related = entries.filter(([i, j]) => i === state.cls || j === state.cls).flatMap(([i, j]) => [i, j]);
    const others = new Set(related.filter((k) => k !== state.cls && k !== nothing));
    classes = [state.cls, ...others];
  }
  const keys = [...classes, nothing];
  const at = new Map(keys.map((k, i) => [k, i]));
  const counts = keys.map(() => keys.map(() => 0));
  for (const [i, j, n] of entries) if (at.has(i) && at.has(j)) counts[at.get(i)][at.get(j)] = n;
  const totals = new Map(keys.map((k) => [k, sum(entries.filter(([i]) => i === k).map((e) => e[2]))]));
  const z = counts.map((row, i) => row.map((n) => (n ? n / totals.get(keys[i]) : null)));
  const unique = (names) => names.map((n, i) => (names.indexOf(n) === i ? n : `${n} (${i})`));
  const names = (none) => unique(keys.map((k) => (k === nothing ? none : plain(data.classes[k]))));
  const small = keys.length <= 12;
  const large = keys.length > 25;
  byId("confusion").closest(".card").classList.toggle("wide", large);
  byId("confusion").style.height = large ? `${Math.min(200 + 9 * keys.length, 900)}px` : "";
  byId("confusion-hint").textContent =
    `Pairs of IoU 0.5 or more, score ${data.scoreThreshold} or more; shade: share of the row. ` +
    "Click a cell for its class.";
  draw("confusion", [{
    type: "heatmap", z, x: names("missed"), y: names("nothing there"),
    text: counts.map((row) => row.map((n) => (n ? String(n) : ""))), customdata: counts,
    texttemplate: small ? "%{text}" : "", textfont: { size: 11 },
    hovertemplate: "truth: %{y}<br>predicted: %{x}<br>%{customdata} (%{z:.1%})<extra></extra>",
    colorscale: [[0, "#f3f7fd"], [0.5, "#84aef0"], [1, "#1d4f9f"]], zmin: 0, zmax: 1, showscale: false,
    xgap: 1, ygap: 1, hoverongaps: false,
  }], {
    xaxis: { title: { text: "predicted" }, type: "category", tickangle: small ? "auto" : -60 },
    yaxis: { title: { text: "truth" }, type: "category", autorange: "reversed" },
  }, (point) => {
    const [row, column] = point.pointNumber;
    const k = keys[row] === nothing ? keys[column] : keys[row];
    if (k !== nothing) chooseClass(k);
  });
}

// ---- images ----

// The detections of an image that count with the current choice, their objects, and its F1.
function judge(image) {
  const ofClass = (c) => state.cls === null || c === state.cls;
  const found = image.found.filter((d) => d.s >= state.score).map((d) => ({
    ...d, kind: data.kinds[d.kind[state.task]], object: d.of[state.task],
  }));
  const hit = new Set(found.filter((d) => d.kind === "correct").map((d) => d.object));
  const objects = image.truth.filter((t) => !t.crowd && ofClass(t.c));
  const own = found.filter((d) => ofClass(d.c) && d.kind);
  const tp = own.filter((d) => d.kind === "correct").length;
  const [fp, fn] = [own.length - tp, objects.length - tp];
  const present = { ...Object.fromEntries(own.map((d) => [d.kind, true])), Miss: fn > 0 };
  const total = own.length + objects.length;
  return { image, found, hit, tp, fp, fn, present, total, f1: total ? (2 * tp) / total : 1 };
}

function renderGallery() {
  byId("score").value = state.score;
  byId("score-value").textContent = state.score.toFixed(2);
  byId("order").replaceChildren(...["worst", "best"].map((order) => element("button", {
    "aria-pressed": String(order === state.order), onclick: () => update({ order }),
  }, order)));
  const judged = data.images.map(judge)
    .filter((j) => j.total && (state.error === null || j.present[state.error]));
  const sign = state.order === "worst" ? 1 : -1;
  judged.sort((a, b) => sign * (a.f1 - b.f1) || (sign > 0 ? b.fp + b.fn - a.fp - a.fn : b.tp - a.tp));
  const cards = judged.slice(0, state.shown).map(drawPair);
  if (!cards.length) {
    const none = data.images.length ? "No image on this page matches." : "This page has no images.";
    cards.push(element("p", { class: "empty" }, none));
  }
  byId("gallery").replaceChildren(...cards);
  byId("more").hidden = judged.length <= state.shown;
}

function drawPair({ image, found, hit, tp, fp, fn, f1 }) {
  const faint = (c) => state.cls !== null && c !== state.cls;
  const path = (shape) => (state.task === "segm" ? shape.p : null);
  const truth = image.truth.map((t, i) => {
    const status = t.crowd ? "crowd" : hit.has(i) ? "found" : "missed";
    return {
      box: t.b, path: path(t), color: status === "found" ? COLORS.correct : COLORS.Miss,
      dash: status !== "found", label: data.classes[t.c], title: `${data.classes[t.c]}, ${status}`,
      faint: faint(t.c),
    };
  });
  const detections = [...found].reverse().map((d) => ({
    box: d.b, path: path(d), color: COLORS[d.kind] || GRAY,
    label: `${data.classes[d.c]} ${d.s.toFixed(2)}`,
    title: `${data.classes[d.c]} ${d.s.toFixed(3)}: ${d.kind ? MEANINGS[d.kind] : "in a crowd"}`,
    faint: faint(d.c) || (state.error !== null && state.error !== "Miss" && d.kind !== state.error),
  }));
  return element("figure", {},
    element("div", { class: "pair" },
      element("div", { class: "side" }, drawImage(image, truth), element("span", {}, "truth")),
      element("div", { class: "side" }, drawImage(image, detections), element("span", {}, "detections"))),
    element("figcaption", {}, element("span", { title: image.file }, image.file),
      element("span", {}, `F1 ${f1.toFixed(2)} · ${tp} correct, ${fp} wrong, ${fn} missed`)));
}

// ---- all ----

function render() {
  renderBar();
  renderTiles();
  renderTable();
  renderBars();
  renderCurves();
  renderErrors();
  renderIous();
  renderSizes();
  renderScores();
  renderConfusion();
  renderGallery();
}

const { images, objects, detections, crowds } = data.counts;
byId("summary").textContent =
  `${data.results} · ${plural(images, "image")} · ${plural(objects, "object")}` +
  (crowds ? ` and ${plural(crowds, "crowd")}` : "") +
  ` of ${data.classes.length} ${data.classes.length === 1 ? "class" : "classes"} · ${plural(detections, "detection")}`;
fillNotes();
fillClassSelect((cls) => update({ cls }));
byId("reset").addEventListener("click", () => update({ cls: null }));
byId("error-chip").addEventListener("click", () => update({ error: null }));
byId("scale").addEventListener("click", () => update({ log: !state.log }));
byId("score").addEventListener("input", (event) => update({ score: Number(event.target.value) }));
byId("more").addEventListener("click", () => { state.shown += PAGE; renderGallery(); });
legend(byId("legend"), data.kinds.map((k) => [k === "correct" ? k : `${k}: ${MEANINGS[k]}`, COLORS[k]])
  .concat([["missed object", COLORS.Miss]]));
render();
document.documentElement.dataset.ready = "true";
