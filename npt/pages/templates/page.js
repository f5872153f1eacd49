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

// The scheme of the page is the system's until it is chosen.
document.getElementById("scheme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.scheme || (dark ? "dark" : "light");
  root.dataset.scheme = now === "dark" ? "light" : "dark";
});
