// The first curve of each diagram, of all chosen runs in one.
import {Diagram} from './pages/curves/curves.js';
import {texts} from './page.js';

const columns = JSON.parse(document.getElementById('columns')?.textContent ?? '[]');
const shared = {share: () => 0.9, log: () => false, marks: () => [], texts: texts.curves, zoomed: show};
const plots = new Map();

async function show(from = null, to = null) {
  const part = from === null ? '' : `&from=${from}&to=${to}`;
  const seen = new Set(),
    byTitle = new Map();
  for (const {id, label} of columns) {
    if (seen.has(id)) continue; // steps of one run have the same curves
    seen.add(id);
    const answer = await fetch(`/runs/${encodeURIComponent(id)}/curves?points=600${part}`);
    if (!answer.ok) continue;
    for (const {
      title,
      exact,
      curves: [curve],
    } of (await answer.json()).diagrams) {
      byTitle.set(title, [...(byTitle.get(title) ?? []), {...curve, exact, name: `${label} ${curve.name}`}]);
    }
  }
  for (const [title, curves] of byTitle) {
    if (!plots.has(title)) plots.set(title, new Diagram(document.getElementById('plots'), title, shared));
    plots.get(title).show(curves, curves[0].exact);
  }
}
show();
