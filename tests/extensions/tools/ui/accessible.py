"""What makes a page hard to use, as a browser sees it: faint texts, controls without a
name, what the Tab key does not reach, what is wider than the screen."""

from __future__ import annotations

from typing import Any

from tests.html_browser import Browser

SIZES = ((1200, False), (390, True))
"""Widths in CSS pixels, each in one of the themes."""

FAINT = """
const canvas = Object.assign(document.createElement('canvas'), {width: 1, height: 1});
const context = canvas.getContext('2d', {willReadFrequently: true});
const mixed = (colour, under) => {
  context.fillStyle = `rgb(${under})`; context.fillRect(0, 0, 1, 1);
  context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
};
const light = colour => {
  const [r, g, b] = colour.map(c => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const found = [], walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const text = walker.currentNode.textContent.trim(), element = walker.currentNode.parentElement;
  if (!text || element.closest('script, style, option, [disabled]')) continue;
  if (!element.checkVisibility({visibilityProperty: true, opacityProperty: true})) continue;
  const around = [];
  for (let each = element; each; each = each.parentElement) around.unshift(getComputedStyle(each).backgroundColor);
  const back = around.reduce((under, colour) => mixed(colour, under), [255, 255, 255]);
  const style = getComputedStyle(element), front = mixed(style.color, back);
  const [one, other] = [light(front), light(back)].sort((a, b) => b - a);
  const ratio = (one + 0.05) / (other + 0.05);
  const size = parseFloat(style.fontSize), isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
  if (ratio < (isLarge ? 3 : 4.5)) found.push(`${ratio.toFixed(2)}: ${text.slice(0, 60)}`);
}
return found;
"""

UNREACHED = """
const all = [...document.querySelectorAll('a[href], button, input, select, textarea, summary, [tabindex="0"]')];
return all.filter(each => each.checkVisibility() && !each.disabled && each.type !== 'hidden' && each.tabIndex < 0
  && !each.hasAttribute('aria-hidden')).map(each => each.outerHTML.slice(0, 80));
"""

NAMED = (
    "button",
    "textbox",
    "searchbox",
    "checkbox",
    "radio",
    "combobox",
    "listbox",
    "spinbutton",
    "slider",
    "link",
)
NAMED += ("image", "img", "progressbar")


def faults(browser: Browser, width: int) -> list[str]:
    """The faults of the page that is open, in words. width: of the screen in CSS
    pixels."""
    found = [f"faint {text}" for text in browser.run(FAINT)]
    found += [f"not reached by Tab: {element}" for element in browser.run(UNREACHED)]
    tree: list[dict[str, Any]] = browser.command("Accessibility.getFullAXTree")["nodes"]
    for node in tree:
        role = node.get("role", {}).get("value", "")
        if (
            role in NAMED
            and not node.get("ignored")
            and not node.get("name", {}).get("value", "").strip()
        ):
            found.append(f"{role} without a name: {_source(browser, node)}")
    wide = browser.run("return document.documentElement.scrollWidth")
    found += [f"{wide} pixels wide"] if wide > width else []
    return found


def _source(browser: Browser, node: dict[str, Any]) -> str:
    """The beginning of an element's HTML."""
    html: str = browser.command(
        "DOM.getOuterHTML", backendNodeId=node["backendDOMNodeId"]
    )["outerHTML"]
    return html[:100]
