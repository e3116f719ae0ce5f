# Copyright 2026 The holistic-clip-hf authors. Licensed under the Apache License, Version 2.0.
"""Style of the page, on gradio's own colours so that light and dark follow the visitor, and what a click does."""

CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
footer { opacity: .55; }
.hc-title h1 { font-size: 1.7rem; margin: .2rem 0 0; letter-spacing: -.02em; font-weight: 650; }
.hc-title p { margin: .1rem 0 .3rem; color: var(--body-text-color-subdued); }
#hc-weights .form { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); width: 100%;
  border: 0; background: none; }
#hc-weights .block { min-width: 0 !important; padding: .2rem .5rem; background: none; }
#hc-weights .head { display: flex; flex-flow: row nowrap !important; align-items: center; gap: .3rem;
  justify-content: space-between; }
#hc-weights .head label { min-width: 0; overflow-wrap: anywhere; }
#hc-weights input[type=number] { width: 3.2rem; min-width: 0; padding: 0 .2rem; }
#hc-weights .reset-button { display: none; }
.hc-hint { margin: .1rem .3rem; font-size: .8rem; color: var(--body-text-color-subdued); }
.hc-hint code { font-size: .95em; }
#hc-weights .head span { background: none; padding: 0; color: var(--body-text-color); font-size: .88rem; }
.hc-message { padding: 2.2rem 1rem; text-align: center; color: var(--body-text-color-subdued); font-size: 1.05rem; }
.hc-legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .2rem 0 .7rem; font-size: .85rem;
  color: var(--body-text-color-subdued); }
.hc-legend span::before { content: ""; display: inline-block; width: .7em; height: .7em; border-radius: 3px;
  background: var(--hue); margin-right: .4em; }
.hc-grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(128px, 1fr)); gap: .75rem; }
.hc-card { position: relative; display: flex; flex-direction: column; padding: 0; overflow: hidden; text-align: left;
  border: 1px solid var(--border-color-primary); border-radius: 12px; background: var(--block-background-fill);
  color: var(--body-text-color); cursor: pointer; transition: transform .12s, box-shadow .12s; }
.hc-card:hover, .hc-card:focus-visible { transform: translateY(-2px); box-shadow: 0 6px 18px rgba(0, 0, 0, .18);
  outline: 2px solid var(--color-accent); }
.hc-card img { width: 100%; aspect-ratio: 1; object-fit: contain; background: #fff; padding: 8px; display: block; }
.hc-name { padding: .35rem .55rem .4rem; font-size: .78rem; font-weight: 500; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; }
.hc-name b { color: var(--body-text-color-subdued); font-weight: 400; margin-right: .5em; }
.hc-score { position: absolute; top: 6px; right: 6px; padding: .05rem .4rem; border-radius: 99px; font-size: .72rem;
  background: rgba(20, 24, 32, .72); color: #fff; font-variant-numeric: tabular-nums; }
.hc-strip { display: flex; gap: 1px; height: 7px; }
.hc-strip i { display: block; min-width: 1px; background: var(--hue); }
.hc-against {
  background-image: repeating-linear-gradient(45deg, rgba(255, 255, 255, .65) 0 2px, transparent 2px 5px); }
.hc-overlay { position: fixed; inset: 0; z-index: 1000; background: rgba(8, 10, 16, .6); backdrop-filter: blur(3px);
  display: flex; justify-content: center; align-items: flex-start; padding: 3vh 1rem; overflow-y: auto; }
.hc-panel { position: relative; width: min(940px, 100%); padding: 1.4rem 1.5rem 1.6rem; border-radius: 16px;
  background: var(--background-fill-primary); color: var(--body-text-color); box-shadow: 0 20px 60px rgba(0,0,0,.4); }
.hc-close { position: absolute; top: .7rem; right: .8rem; width: 2.4rem; height: 2.4rem; border-radius: 99px;
  font-size: 1.3rem; line-height: 1; cursor: pointer; color: var(--body-text-color);
  background: var(--background-fill-secondary); }
.hc-head { display: flex; gap: 1.3rem; align-items: flex-start; }
.hc-head img { width: 210px; max-width: 40%; aspect-ratio: 1; object-fit: contain; background: #fff; padding: 10px;
  border-radius: 12px; border: 1px solid var(--border-color-primary); }
.hc-head > div { flex: 1; min-width: 0; padding-right: 2.4rem; }
.hc-head h3 { margin: 0 0 .6rem; font-size: 1.15rem; overflow-wrap: anywhere; }
.hc-panel section, .hc-maps section { margin-top: 1.3rem; }
.hc-panel h4, .hc-maps h4, .hc-branch h4 { margin: 0; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
.hc-panel p, .hc-maps p { margin: .1rem 0 .6rem; font-size: .85rem; color: var(--body-text-color-subdued); }
.hc-reasons { list-style: none; margin: 0; padding: 0; }
.hc-reasons li { display: grid; grid-template-columns: 6.2rem 1fr 3.2rem; gap: .6rem; align-items: center;
  margin: .18rem 0; font-size: .85rem; }
.hc-reasons span { overflow: hidden; text-overflow: ellipsis; }
.hc-reasons i { height: .8em; border-radius: 4px; background-color: var(--hue); min-width: 2px; }
.hc-reasons b { font-weight: 500; font-variant-numeric: tabular-nums; text-align: right; }
.hc-tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: .7rem; }
.hc-tiles figure { margin: 0; }
.hc-tiles img { width: 100%; border-radius: 10px; display: block; border: 1px solid var(--border-color-primary); }
.hc-tiles figcaption { font-size: .85rem; margin-top: .25rem; overflow-wrap: anywhere; }
.hc-tiles small, .hc-panel th small { display: block; color: var(--body-text-color-subdued); font-size: .75rem; }
.hc-scroll { overflow-x: auto; }
.hc-panel table, .hc-panel th, .hc-panel td { border: 0 !important; }
.hc-panel table { border-collapse: separate; border-spacing: 3px; width: 100%; font-size: .85rem; }
.hc-panel th { text-align: left; font-weight: 500; padding: .25rem .4rem; overflow-wrap: anywhere; }
.hc-panel thead th { text-align: center; color: var(--body-text-color-subdued); overflow-wrap: normal; }
.hc-panel td { text-align: center; border-radius: 6px; padding: .35rem .3rem; font-variant-numeric: tabular-nums;
  background: color-mix(in srgb, #3a6db0 calc(var(--share) * .62), transparent); min-width: 3.2rem; }
.hc-panel td.hc-best { outline: 2px solid #d9822b; outline-offset: -2px; font-weight: 600; }
.hc-branches { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: .8rem; }
.hc-branch { border: 1px solid var(--border-color-primary); border-top: 4px solid var(--hue); border-radius: 10px;
  padding: .7rem .8rem; background: var(--block-background-fill); }
.hc-branch ol { margin: .4rem 0 0; padding: 0; list-style: none; font-size: .88rem; }
.hc-branch li { display: flex; gap: .6rem; justify-content: space-between; padding: .18rem 0; }
.hc-branch li span { overflow-wrap: anywhere; }
.hc-branch li b { font-weight: 500; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
@media (max-width: 640px) {
  .hc-grid { grid-template-columns: repeat(3, 1fr); gap: .5rem; }
  .hc-name { font-size: .7rem; }
  #hc-weights .form { grid-template-columns: repeat(2, 1fr); }
  .hc-overlay { padding: 0; }
  .hc-panel { border-radius: 0; padding: 1rem; min-height: 100vh; }
  .hc-head { flex-direction: column; gap: .8rem; }
  .hc-head img { width: 100%; max-width: 60%; }
  .hc-head > div { width: 100%; padding-right: 0; }
  .hc-tiles { grid-template-columns: repeat(3, 1fr); gap: .5rem; }
}
"""

# A click on a card asks for that image; the id is looked up in the index, never opened as a path.
OPEN_CARD = """
element.addEventListener('click', (event) => {
  const card = event.target.closest('[data-image-id]');
  if (card) trigger('inspect', {image_id: card.dataset.imageId});
});
"""

CLOSE_PANEL = """
const close = () => { props.value = ''; };
element.addEventListener('click', (event) => {
  if (event.target.closest('.hc-close') || event.target.classList.contains('hc-overlay')) close();
});
document.addEventListener('keydown', (event) => { if (event.key === 'Escape' && props.value) close(); });
watch('value', () => { element.querySelector('.hc-overlay')?.focus(); });
"""
