"use strict";

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
