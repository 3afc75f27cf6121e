// Tells the likeliest classes below the pointer, of the coarse probabilities that a picture carries.
function segmodPoint(event, picture) {
  const {rows, columns, names, maps} = picture.dataset;
  const box = picture.getBoundingClientRect();
  const cell = (share, count) => Math.max(0, Math.min(count - 1, Math.floor(share * count)));
  const x = cell((event.clientX - box.left) / box.width, +columns);
  const y = cell((event.clientY - box.top) / box.height, +rows);
  picture.bytes ||= Uint8Array.from(atob(maps), letter => letter.charCodeAt(0));
  const found = JSON.parse(names).map((name, k) => [picture.bytes[(k * rows + y) * columns + x] / 2.55, name]);
  const likely = found.sort((a, b) => b[0] - a[0]).filter(([percent]) => percent >= 1).slice(0, 4);
  const told = likely.map(([percent, name]) => `${name} ${percent.toFixed(0)} %`).join(", ");
  picture.parentNode.querySelector(".segmod-told").textContent = told;
}
