// The first curve of each diagram, of all chosen runs in one.
import {Diagram} from '/static/pages/curves/curves.js';
import {one, texts} from '/static/page.js';

/** @type {{id: string, label: string}[]} */
const columns = JSON.parse(one('#columns')?.textContent ?? '[]');
const shared = {share: () => 0.9, log: () => false, marks: () => [], texts: texts.curves, zoomed: show};
/** @type {Map<string, Diagram>} */
const plots = new Map();

/** @type {(from?: number | null, to?: number) => Promise<void>} */
async function show(from = null, to) {
  const part = from === null ? '' : `&from=${from}&to=${to}`;
  const seen = new Set();
  /** @type {Map<string, (Curve & {exact: boolean})[]>} */
  const byTitle = new Map();
  for (const {id, label} of columns) {
    if (seen.has(id)) continue; // steps of one run have the same curves
    seen.add(id);
    const answer = await fetch(`/runs/${encodeURIComponent(id)}/curves?points=600${part}`);
    if (!answer.ok) continue;
    /** @type {{diagrams: Chart[]}} */
    const found = await answer.json();
    for (const {title, exact, curves} of found.diagrams) {
      const name = `${label} ${curves[0].name}`;
      byTitle.set(title, [...(byTitle.get(title) ?? []), {...curves[0], exact, name}]);
    }
  }
  for (const [title, curves] of byTitle) {
    const plot = plots.get(title) ?? new Diagram(one('#plots'), title, shared);
    plots.set(title, plot);
    plot.show(curves, curves[0].exact);
  }
}
show();
