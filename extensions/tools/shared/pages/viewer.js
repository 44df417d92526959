// Images of a page, each shown large with the one before and after it.

/**
 * The first element of a page for a selector, where there always is one.
 * @template {Element} [T=HTMLElement]
 * @param {string} selector
 * @param {ParentNode} [within]
 */
export const one = (selector, within = document) => /** @type {T} */ (within.querySelector(selector));

/**
 * All elements for a selector, in their order.
 * @template {Element} [T=HTMLElement]
 * @param {string} selector
 * @param {ParentNode} [within]
 */
export const all = (selector, within = document) => /** @type {T[]} */ ([...within.querySelectorAll(selector)]);

/**
 * What an event is about: the element, or the one around it that fits a selector.
 * @template {Element} [T=HTMLElement]
 * @param {Event} event
 * @param {string} selector
 */
export const around = (event, selector) =>
  /** @type {T | null} */ (/** @type {Element} */ (event.target).closest(selector));

// Marks of the direction of text as they are seen: a name could look as another with them.
/** @param {string} text */
export const shown = text =>
  text.replace(
    /[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]/g,
    mark => `‹U+${mark.charCodeAt(0).toString(16).toUpperCase().padStart(4, '0')}›`,
  );

/**
 * Shows the image of a link in the page's #large.
 * @param {(link: HTMLAnchorElement) => string} words what stands below it
 * @param {(link: HTMLAnchorElement, by: number, rows: number) => HTMLAnchorElement | null | undefined} move the link before
 *   (-1) or after (1) it, or so many rows below it, if there is one
 * @returns what is done at a click on a link
 */
export function viewer(words, move) {
  /** @type {HTMLDialogElement} */
  const large = one('#large');
  /** @type {HTMLAnchorElement} */
  let open;
  /** @param {HTMLAnchorElement | null | undefined} link */
  const show = link => {
    if (!link) return;
    open = link;
    one('img', large).setAttribute('src', link.href);
    one('.words', large).textContent = shown(words(link));
    if (!large.open) large.showModal();
  };
  for (const button of all('[data-by]', large)) {
    const by = Number(button.dataset.by);
    button.addEventListener('click', () => (by ? show(move(open, by, 0)) : large.close()));
  }
  /** @type {Record<string, [by: number, rows: number]>} */
  const ways = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]};
  large.addEventListener('keydown', event => {
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    show(move(open, ...way));
  });
  large.addEventListener('close', () => {
    /** @type {HTMLElement | null} */
    const card = open.closest('[tabindex]');
    (card ?? open).focus();
  });
  /** @type {(event: MouseEvent, link: HTMLAnchorElement | null) => void} */
  const enlarge = (event, link) => {
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    show(link);
  };
  return enlarge;
}
