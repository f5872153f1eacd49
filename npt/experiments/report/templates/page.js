"use strict";

// A click on a heading sorts its table; rows without a value stay last.
function key(row, column) {
  const cell = row.cells[column];
  if (cell.classList.contains("missing") && !cell.dataset.value) return null;
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}

function compare(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sort(heading) {
  const table = heading.closest("table"), body = table.tBodies[0];
  const sign = heading.getAttribute("aria-sort") === "descending" ? 1 : -1;
  const first = heading.cellIndex === 0 && heading.getAttribute("aria-sort") === "none";
  const order = first ? 1 : sign; // names from A, figures from the largest
  for (const other of heading.parentElement.cells) other.setAttribute("aria-sort", "none");
  heading.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
  const rows = [...body.rows].map((row) => [key(row, heading.cellIndex), row]);
  rows.sort(([a], [b]) => (a === null) - (b === null) || (a === null ? 0 : order * compare(a, b)));
  body.append(...rows.map(([, row]) => row));
}

document.addEventListener("click", (event) => {
  const heading = event.target.closest("table.sortable thead th");
  if (heading) sort(heading);
});

// The classes of one test as a table, made when they are looked at.
function element(name, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  return made;
}

function headingOf(text) {
  const heading = element("th"), button = element("button", text);
  heading.scope = "col";
  heading.setAttribute("aria-sort", "none");
  button.type = "button";
  heading.append(button);
  return heading;
}

function figure(value, text) {
  const cell = element("td", value === null || value === undefined ? "–" : text);
  if (value === null || value === undefined) cell.className = "missing";
  else cell.dataset.value = value;
  return cell;
}

function tableOf(test) {
  const table = element("table"), head = table.createTHead().insertRow(), body = table.createTBody();
  const methods = Object.keys(test.methods);
  table.className = "sortable";
  head.append(headingOf("class"));
  if (test.counts.length) head.append(headingOf("training images"));
  head.append(...methods.map(headingOf));
  test.classes.forEach((name, k) => {
    const row = body.insertRow(), heading = element("th", name);
    heading.scope = "row";
    row.append(heading);
    if (test.counts.length) row.append(figure(test.counts[k], test.counts[k]));
    for (const method of methods) {
      const value = test.methods[method][k];
      row.append(figure(value, value === null ? "" : value.toFixed(1)));
    }
  });
  return table;
}

for (const details of document.querySelectorAll("details.classes")) {
  const select = details.querySelector("select"), place = details.querySelector(".wide");
  details.addEventListener("toggle", () => {
    if (select.options.length) return;
    const tests = JSON.parse(details.querySelector("script").textContent);
    select.append(...tests.map((test) => element("option", test.title)));
    const show = () => place.replaceChildren(tableOf(tests[select.selectedIndex]));
    select.addEventListener("change", show);
    show();
  });
}

// The scheme of the page is the system's until it is chosen.
document.getElementById("scheme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.scheme || (dark ? "dark" : "light");
  root.dataset.scheme = now === "dark" ? "light" : "dark";
});
