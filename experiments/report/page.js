// A click on a column's heading sorts the table, by number where cells begin with one.
for (const heading of document.querySelectorAll("thead th")) {
  const button = document.createElement("button");
  button.textContent = heading.textContent;
  heading.replaceChildren(button);
  button.addEventListener("click", () => {
    const column = heading.cellIndex;
    const up = heading.getAttribute("aria-sort") === "descending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", up ? "ascending" : "descending");
    const body = heading.closest("table").tBodies[0];
    const text = (row) => row.cells[column].textContent.trim();
    const number = (row) => parseFloat(text(row).replace(/,/g, ""));
    const order = (a, b) => {
      const [x, y] = [number(a), number(b)];
      if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what is missing comes last
      return (up ? 1 : -1) * (isNaN(x) ? text(a).localeCompare(text(b)) : x - y);
    };
    body.replaceChildren(...[...body.rows].sort(order));
  });
}
