"""The field that images are dropped on. It uploads the files by itself; its value are the ids that the server gave, with spaces."""

from __future__ import annotations

import gradio as gr

from dehvf_kit_chat.uploads import MOST, Uploads

FIELD = """<label><span class='name'>Images: drop them here, or click to choose</span>
<input type='file' accept='image/*' multiple aria-label='Images'></label><ul></ul>
<p role='alert' hidden></p>"""
CSS = """label{display:grid;place-items:center;position:relative;min-height:140px;padding:1rem;cursor:pointer;text-align:center;
border:2px dashed var(--border-color-primary);border-radius:8px;overflow-wrap:anywhere}
label:focus-within,label:hover{border-color:var(--color-accent)}
input{position:absolute;inset:0;width:100%;height:100%;opacity:0;cursor:pointer}ul{list-style:none;margin:0;padding:0}
button{all:unset;cursor:pointer;text-decoration:underline;font-size:.88rem;margin-top:.4rem;overflow-wrap:anywhere}
button:focus-visible{outline:2px solid var(--color-accent)}"""
# The listeners are on the component itself: gradio may draw what is inside anew.
SCRIPT = """
const part = (name) => element.querySelector(name);
const prompt = part('.name').textContent;
let chosen = [], wrong = '', waiting = '';
const row = (one, place) => {
  const button = document.createElement('button');
  button.type = 'button';
  button.textContent = 'Remove ' + one.name;
  button.dataset.place = place;
  const item = document.createElement('li');
  item.append(button);
  return item;
};
const show = () => {
  part('.name').textContent = waiting || prompt;
  part('ul').replaceChildren(...chosen.map(row));
  part('p').hidden = !wrong;
  part('p').textContent = wrong;
};
const set = () => { props.value = chosen.map((one) => one.id).join(' '); requestAnimationFrame(show); };
element.addEventListener('click', (event) => {
  if (!event.target.matches('button')) return;
  chosen.splice(Number(event.target.dataset.place), 1); wrong = ''; set();
});
const sent = async (file) => {
  if (file.size > props.limit) return props.too_large;
  if (chosen.length >= props.most) return props.too_many;
  waiting = file.name + ' ...'; show();
  try {
    const answer = await fetch('upload?name=' + encodeURIComponent(file.name), {method: 'POST', body: file});
    if (!answer.ok) return await answer.text();
    const id = (await answer.json()).id;
    if (chosen.length >= props.most) return props.too_many;
    chosen.push({id: id, name: file.name});
  } catch (error) { return 'The image could not be uploaded: ' + error.message; }
  return '';
};
element.addEventListener('change', async (event) => {
  const files = [...event.target.files || []];
  event.target.value = '';
  wrong = '';
  for (const file of files) wrong = await sent(file) || wrong;
  waiting = ''; set();
});
"""


def image_field(uploads: Uploads) -> gr.HTML:
    """A field whose value are the ids of the uploaded images in their order, or nothing."""
    return gr.HTML(
        "",
        html_template=FIELD,
        css_template=CSS,
        js_on_load=SCRIPT,
        elem_id="image",
        limit=uploads.limit,
        too_large=str(uploads.too_large()),
        most=MOST,
        too_many=str(uploads.too_many()),
    )
