// Sorts the table of pairs, and with it the pairs below, by the column whose heading is pressed.
const table = document.getElementById("pairs");
const body = table.tBodies[0];
const headings = [...table.tHead.rows[0].cells];

function sortBy(column) {
  const heading = headings[column];
  const descending = heading.getAttribute("aria-sort") === "ascending";
  const direction = descending ? -1 : 1;
  const rows = [...body.rows].sort(
    (a, b) => direction * (Number(a.cells[column].dataset.value) - Number(b.cells[column].dataset.value)),
  );
  for (const row of rows) {
    body.append(row);
    const pair = document.getElementById(row.dataset.pair);
    pair.parentNode.append(pair);
  }
  for (const other of headings) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
}

headings.forEach((heading, column) => {
  if (!("sortable" in heading.dataset)) return;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = heading.textContent;
  button.addEventListener("click", () => sortBy(column));
  heading.replaceChildren(button);
});
