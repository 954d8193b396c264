"use strict";
(() => {
  const hidden = new Set();
  const buttons = [...document.querySelectorAll("button[data-toggle]")];
  const inLegend = (element) => !element.closest(".own");

  function apply() {
    for (const button of buttons) button.setAttribute("aria-pressed", String(!hidden.has(button.dataset.toggle)));
    for (const group of document.querySelectorAll("g[data-s]"))
      if (inLegend(group)) group.classList.toggle("off", hidden.has(group.dataset.s));
  }
  for (const button of buttons) {
    const series = button.dataset.toggle;
    if (button.getAttribute("aria-pressed") === "false") hidden.add(series);
    button.addEventListener("click", (event) => {
      if (event.detail > 1) return;
      hidden.has(series) ? hidden.delete(series) : hidden.add(series);
      apply();
    });
    button.addEventListener("dblclick", () => {
      const others = buttons.map((each) => each.dataset.toggle).filter((each) => each !== series);
      const alone = others.every((each) => hidden.has(each));
      hidden.clear();
      if (!alone) others.forEach((each) => hidden.add(each));
      apply();
    });
    button.addEventListener("pointerenter", () => highlight(series));
    button.addEventListener("pointerleave", () => highlight(null));
  }
  function highlight(series) {
    for (const group of document.querySelectorAll("g[data-s]"))
      if (inLegend(group)) group.classList.toggle("back", series !== null && group.dataset.s !== series);
  }
  for (const row of document.querySelectorAll("tr[data-row]")) {
    row.addEventListener("pointerenter", () => highlight(row.dataset.row));
    row.addEventListener("pointerleave", () => highlight(null));
  }
  apply();

  function shown(value) {
    const size = Math.abs(value);
    const text = size >= 1e9 ? (size / 1e9).toPrecision(4) + "G" : size >= 1e6 ? (size / 1e6).toPrecision(4) + "M"
      : size && size < 1e-3 ? size.toExponential(2) : String(Number(size.toPrecision(4)));
    return (value < 0 ? "\u2212" : "") + text;
  }
  function nearest(values, at) {
    let low = 0, high = values.length - 1;
    while (high - low > 1) {
      const middle = (low + high) >> 1;
      if (values[middle] < at) low = middle; else high = middle;
    }
    return at - values[low] <= values[high] - at ? low : high;
  }
  function line(left, right, key) {
    const element = document.createElement("div");
    const name = document.createElement("span"), value = document.createElement("b");
    if (key) {
      const mark = document.createElement("i");
      mark.className = "key " + key;
      name.append(mark);
    }
    name.append(left);
    value.textContent = right;
    element.append(name, value);
    return element;
  }
  function rows(data, at, own) {
    const found = [];
    for (const each of data.lines) {
      if (!each.x.length || (!own && hidden.has(String(each.s)))) continue;
      const i = nearest(each.x, at), step = (data.x[1] - data.x[0]) * 0.04;
      if (at < each.x[0] - step || at > each.x[each.x.length - 1] + step) continue;
      const several = each.low && i < each.low.length && each.low[i] < each.high[i];
      const interval = several ? ` [${shown(each.low[i])}, ${shown(each.high[i])}]` : "";
      const key = "s" + (each.s % 10) + (each.s >= 10 ? " d" + Math.min(Math.floor(each.s / 10), 3) : "");
      found.push({ y: each.y[i], x: each.x[i], node: line(each.label, shown(each.y[i]) + interval, key) });
    }
    return found.sort((a, b) => b.y - a.y);
  }
  const readout = document.createElement("div");
  const cursor = document.createElement("div");
  readout.className = "readout";
  cursor.className = "cursor";
  function leave() {
    readout.remove();
    cursor.remove();
  }
  for (const chart of document.querySelectorAll("figure.chart")) {
    const area = chart.querySelector(".area");
    const own = !inLegend(chart);
    let data = null;
    area.addEventListener("pointermove", (event) => {
      data ??= JSON.parse(chart.querySelector("script").textContent);
      const box = area.getBoundingClientRect();
      const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
      const found = rows(data, data.x[0] + share * (data.x[1] - data.x[0]), own);
      if (!found.length) return leave();
      const x = found[0].x;
      const place = data.ticks ? data.xLabel + " = " + data.ticks[x] : shown(x) + " " + data.xLabel;
      const head = line(place, "");
      head.className = "at";
      readout.replaceChildren(head, ...found.slice(0, 14).map((each) => each.node));
      cursor.style.left = ((x - data.x[0]) / (data.x[1] - data.x[0])) * 100 + "%";
      area.append(cursor);
      document.body.append(readout);
      const width = readout.offsetWidth, height = readout.offsetHeight;
      const right = event.clientX + 18 + width > document.documentElement.clientWidth;
      const left = right ? Math.max(event.clientX - 18 - width, 4) : event.clientX + 18;
      const top = Math.min(Math.max(event.clientY - height / 2, 4), document.documentElement.clientHeight - height - 4);
      readout.style.left = left + window.scrollX + "px";
      readout.style.top = top + window.scrollY + "px";
    });
    area.addEventListener("pointerleave", leave);
  }
})();
