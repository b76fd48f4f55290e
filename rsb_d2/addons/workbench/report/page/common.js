// Shared by both pages: elements, charts, tables and shapes over images.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function svgElement(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

const count = (n) => n.toLocaleString("en-US");
const plural = (n, noun) => `${count(n)} ${noun}${n === 1 ? "" : "s"}`;
const percent = (v, digits = 1) => (v === null || v === undefined ? "–" : (100 * v).toFixed(digits));
const sum = (values) => values.reduce((a, b) => a + b, 0);

// ---- charts ----

// Escapes text for Plotly, which interprets markup, and templates in hovertemplate.
const plain = (text) => text.replace(/[&<>%]/g, (c) => `&#${c.charCodeAt(0)};`);

const FONT = getComputedStyle(document.documentElement).fontFamily;

function draw(id, traces, layout, onClick) {
  const axis = { gridcolor: "#edf1f5", zerolinecolor: "#d9e0e7", automargin: true, fixedrange: true };
  const full = {
    font: { family: FONT, size: 12, color: "#43505e" },
    margin: { l: 48, r: 14, t: 10, b: 42 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: { font: { family: FONT } },
    legend: {
      orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: { size: 11.5 }, traceorder: "normal",
    },
    ...layout,
    xaxis: { ...axis, ...layout.xaxis },
    yaxis: { ...axis, ...layout.yaxis },
  };
  for (const side of [full.xaxis, full.yaxis]) {
    if (side.type === "category") side.showgrid = false;
    if (side.title) side.title = { ...side.title, standoff: 10 };
  }
  const node = byId(id);
  Plotly.react(node, traces, full, { responsive: true, displayModeBar: false, displaylogo: false });
  if (node.removeAllListeners) node.removeAllListeners("plotly_click");
  if (onClick) node.on("plotly_click", (event) => onClick(event.points[0]));
  for (const drag of node.querySelectorAll(".nsewdrag")) {
    drag.style.cursor = onClick ? "pointer" : "default";
  }
}

// ---- tables ----

// rows: [{ key, name, values, all }]; columns: [{ name, title, format }], first the one of names.
function drawTable(node, columns, rows, sort, chosen, onSort, onRow) {
  const value = (row) => (sort.column === 0 ? row.name : row.values[sort.column - 1]);
  const order = (a, b) => {
    if (a.all || b.all) return a.all ? -1 : 1;
    const [x, y] = [value(a), value(b)];
    if (x === null || y === null) return (x === null) - (y === null);
    return (x < y ? -1 : x > y ? 1 : 0) * (sort.descending ? -1 : 1);
  };
  const head = element("tr", {}, ...columns.map((column, i) => element("th", {
    title: column.title,
    "aria-sort": i === sort.column && (sort.descending ? "descending" : "ascending"),
    onclick: () => onSort({ column: i, descending: i === sort.column ? !sort.descending : i > 0 }),
  }, column.name)));
  const body = [...rows].sort(order).map((row) => element("tr", {
    "data-class": row.key === null ? "all" : row.key,
    class: [row.all && "all", row.key === chosen && "chosen"].filter(Boolean).join(" "),
    onclick: () => onRow(row.key),
  }, element("td", { title: row.name }, row.name), ...row.values.map((v, i) => {
    const column = columns[i + 1];
    const attributes = { "data-value": v, title: v === null ? column.missing : undefined };
    if (column.share && v !== null && row.key !== chosen) {
      attributes.style = `background: rgba(37, 99, 201, ${(0.17 * v).toFixed(3)})`;
    }
    return element("td", attributes, v === null ? "–" : column.format(v));
  })));
  node.replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
}

// ---- images ----

const MAX_LABELS = 10; // more would cover each other; a name is then shown only on hovering

// shapes: [{ box, path, color, dash, label, title, faint }]
function drawImage(image, shapes) {
  const svg = svgElement("svg", { viewBox: `0 0 ${image.w} ${image.h}`, role: "img" });
  svg.append(svgElement("rect", { width: image.w, height: image.h, fill: "#dfe4ea" }));
  const size = Math.max(image.w / 17, image.h / 13) * 0.82;
  if (image.src) {
    svg.append(svgElement("image", {
      href: image.src, width: image.w, height: image.h, preserveAspectRatio: "none",
    }));
  } else {
    svg.append(svgElement("text", {
      x: image.w / 2, y: image.h / 2, "font-size": size, "text-anchor": "middle", fill: "#5d6b7a",
    }, "cannot be read"));
  }
  const labels = [];
  for (const shape of shapes) {
    const group = svgElement("g", { opacity: shape.faint ? 0.25 : 1 });
    if (shape.path) {
      group.append(svgElement("path", {
        d: shape.path, fill: shape.color, "fill-opacity": 0.32, "fill-rule": "evenodd",
        stroke: shape.color, "stroke-width": 1, class: "shape",
      }));
    }
    if (shape.box) {
      const [x, y, w, h] = shape.box;
      const size = { x, y, width: Math.max(w, 0), height: Math.max(h, 0), class: "shape" };
      // White below, to be visible on any image.
      group.append(svgElement("rect", {
        ...size, fill: "none", stroke: "#fff", "stroke-opacity": 0.65, "stroke-width": 3.5,
      }));
      group.append(svgElement("rect", {
        ...size, fill: shape.color, "fill-opacity": 0.04, stroke: shape.color, "stroke-width": 2,
        "stroke-dasharray": shape.dash ? "5 4" : "none",
      }));
      if (!shape.faint) labels.push({ shape, x, y });
    }
    group.append(svgElement("title", {}, shape.title || shape.label));
    svg.append(group);
  }
  if (labels.length <= MAX_LABELS) placeLabels(svg, image, labels, size);
  return svg;
}

// Places each label above its box, or where there is no other label.
function placeLabels(svg, image, labels, size) {
  const taken = [];
  for (const { shape, x, y } of labels) {
    const width = shape.label.length * size * 0.6;
    const left = Math.max(1, Math.min(x, image.w - width));
    const [, , , h] = shape.box;
    const places = [y - size * 0.25, y + size * 0.95, y + h + size * 0.95, y + h - size * 0.25];
    const fits = (baseline) => baseline > size * 0.8 && baseline < image.h &&
      !taken.some((t) => Math.abs(t.baseline - baseline) < size && left < t.right && t.left < left + width);
    const baseline = places.find(fits);
    if (baseline === undefined) continue;
    taken.push({ baseline, left, right: left + width });
    svg.append(svgElement("text", {
      x: left, y: baseline, "font-size": size, "stroke-width": size / 5, fill: shape.color,
    }, shape.label));
  }
}

function legend(node, entries) {
  node.replaceChildren(...entries.map(([name, color]) =>
    element("span", {}, element("i", { style: `background: ${color}` }), name)));
}

function fillNotes() {
  byId("notes").replaceChildren(...data.notes.map((note) => element("li", {}, note)));
}

function fillClassSelect(onChange) {
  const select = byId("class");
  select.append(element("option", { value: "" }, "all classes"));
  data.classes.forEach((name, k) => select.append(element("option", { value: k }, name)));
  select.addEventListener("change", () => onChange(select.value === "" ? null : Number(select.value)));
}
