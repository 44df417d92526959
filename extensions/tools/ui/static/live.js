// What is new in a run arrives as events, and its curves are read finer where they are zoomed.
import {around, look, one, renew, tell, texts} from '/static/page.js';
import {data, draw, here, latest, range, showCurves, source, takeSamples, words} from '/static/pages/run.js';

// ---------------------------------------------------------------- curves
/** @type {AbortController | null} */
let fetching = null;
source.diagrams = async () => {
  fetching?.abort();
  fetching = new AbortController();
  const part = range ? `&from=${range[0]}&to=${range[1]}` : '';
  try {
    const answer = await fetch(`${here}/curves?points=${Math.min(1200, innerWidth)}${part}`, {signal: fetching.signal});
    if (answer.ok) return await answer.json();
  } catch (error) {
    if (!(error instanceof DOMException && error.name === 'AbortError')) tell(words.failed, true);
  }
};

// A new row is a bucket of its own at the end; after some hundred the server makes fewer of them.
let added = 0;
/** @param {NonNullable<News['rows']>} rows */
function takeRows(rows) {
  if (range || !latest.diagrams) return;
  added += rows.length;
  if (!latest.diagrams.length || added > 400) {
    added = 0;
    return showCurves();
  }
  const curves = latest.diagrams.flatMap(diagram => diagram.curves);
  for (const row of rows) {
    for (const curve of curves) {
      if (!(curve.name in row) || row.step <= (curve.steps.at(-1) ?? -1)) continue;
      curve.steps.push(row.step);
      for (const values of [curve.low, curve.high, curve.mean]) values.push(row[curve.name]);
    }
  }
  draw();
}

// ---------------------------------------------------------------- what is new
// Who allows it is told by the browser when the run has ended. There are no notifications over plain http.
const mayNotify = isSecureContext && 'Notification' in window;
const notify = one('#notify');
/** @param {string} status */
const say = status => `${one('h1').textContent}: ${texts.ended[status] ?? status}`;
if (notify && mayNotify && Notification.permission === 'default') {
  notify.hidden = false;
  notify.addEventListener('click', async () => {
    notify.hidden = (await Notification.requestPermission()) !== 'default';
  });
}

/** @param {Status} status */
function showStatus(status) {
  if (status.status !== data.status.status) {
    if (mayNotify && Notification.permission === 'granted')
      new Notification(say(status.status), {icon: '/static/icon.svg'});
    return location.reload(); // other buttons, other facts
  }
  const known = Object.entries(status.facts).filter(([, text]) => text);
  /** @param {string} name */
  const placeOf = name => one(`[data-fact=${name}]`);
  if (known.some(([name]) => !placeOf(name))) return renew('#state', 'dl.facts');
  for (const [name, text] of known) placeOf(name).textContent = text;
  const [bar, line] = [one('.doing progress'), one('.doing .line')];
  if (status.share === null) bar?.removeAttribute('value');
  else bar?.setAttribute('value', String(status.share));
  if (line) line.textContent = status.now;
}

let seen = data.cursor;
/** @param {News} news */
function take(news) {
  if (news.anew) showCurves();
  if (news.rows) takeRows(news.rows);
  for (const event of news.events ?? []) {
    if (event.event === 'sample') takeSamples(event);
    if (typeof event.step === 'number' && event.event !== 'memory') latest.marks?.push([event.step, event.event]);
    if (event.event === 'warning') renew('#notices');
    if (['sample', 'save'].includes(event.event)) renew('#state', 'dl.facts', '#files');
    if (event.event === 'memory') renew('dl.facts');
  }
  const tail = one('#tail');
  if (news.log && tail) {
    const isAtEnd = tail.scrollHeight - tail.scrollTop - tail.clientHeight < 40;
    tail.textContent = ((news.log_anew ? '' : tail.textContent) + news.log).slice(-65536);
    if (isAtEnd) tail.scrollTop = tail.scrollHeight;
  }
  showStatus(news.status);
}

let failures = 0;
function listen() {
  const stream = new EventSource(`${here}/live?since=${encodeURIComponent(seen)}`);
  stream.onmessage = message => {
    failures = 0;
    seen = message.lastEventId;
    take(JSON.parse(message.data));
  };
  stream.onerror = () => {
    // an EventSource would go on from its own last id; a new one also after a restart
    stream.close();
    if (++failures < 3) setTimeout(listen, 1000 * failures);
    else ask();
  };
}

async function ask() {
  try {
    const answer = await look(`${here}/news?since=${encodeURIComponent(seen)}`, {
      headers: {accept: 'application/json'},
    });
    if (answer.status === 404) return tell(words.gone, true);
    if (answer.ok) {
      const news = await answer.json();
      seen = news.cursor;
      take(news);
      tell('');
      if (++failures > 30) {
        failures = 0;
        return listen();
      }
    }
  } catch {
    /* the page is down: asked again below */
  }
  setTimeout(ask, 2000);
}

document.addEventListener('click', async event => {
  /** @type {HTMLAnchorElement | null} */
  const link = around(event, '[data-hash]');
  if (!link) return;
  event.preventDefault();
  const answer = await fetch(link.href);
  link.replaceWith(Object.assign(document.createElement('code'), {textContent: answer.ok ? await answer.text() : '–'}));
});

showCurves();
listen();
