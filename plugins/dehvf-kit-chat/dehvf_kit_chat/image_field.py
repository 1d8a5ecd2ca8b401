"""The field that an image is dropped on. It uploads the file by itself; its value is the id that the server gave."""

from __future__ import annotations

import gradio as gr

from dehvf_kit_chat.uploads import Uploads

FIELD = """<label><span class='name'>Image: drop it here, or click to choose</span>
<input type='file' accept='image/*' aria-label='Image'></label><button type='button' hidden>Remove the image</button>
<p role='alert' hidden></p>"""
CSS = """label{display:grid;place-items:center;position:relative;min-height:140px;padding:1rem;cursor:pointer;text-align:center;
border:2px dashed var(--border-color-primary);border-radius:8px;overflow-wrap:anywhere}
label:focus-within,label:hover{border-color:var(--color-accent)}
input{position:absolute;inset:0;width:100%;height:100%;opacity:0;cursor:pointer}button{all:unset;cursor:pointer;text-decoration:underline;font-size:.88rem;margin-top:.4rem}
button[hidden]{display:none}button:focus-visible{outline:2px solid var(--color-accent)}"""
# The listeners are on the component itself: gradio may draw what is inside anew.
SCRIPT = """
const part = (name) => element.querySelector(name);
const prompt = part('.name').textContent;
let latest = 0;
const show = (name, wrong) => {
  part('.name').textContent = name || prompt;
  part('button').hidden = !name;
  part('p').hidden = !wrong;
  part('p').textContent = wrong;
};
const set = (id, name, wrong) => { props.value = id; requestAnimationFrame(() => show(name, wrong)); };
element.addEventListener('click', (event) => {
  if (!event.target.matches('button')) return;
  latest += 1; part('input').value = ''; set('', '', '');
});
element.addEventListener('change', async (event) => {
  const file = event.target.files && event.target.files[0];
  if (!file) return;
  const mine = latest += 1;
  const done = (id, wrong) => { if (mine === latest) set(id, id ? file.name : '', wrong); };
  if (file.size > props.limit) return done('', props.too_large);
  show(file.name + ' ...', '');
  try {
    const answer = await fetch('upload?name=' + encodeURIComponent(file.name), {method: 'POST', body: file});
    if (answer.ok) done((await answer.json()).id, ''); else done('', await answer.text());
  } catch (error) { done('', 'The image could not be uploaded: ' + error.message); }
});
"""


def image_field(uploads: Uploads) -> gr.HTML:
    """A field whose value is the id of the uploaded image, or nothing."""
    return gr.HTML(
        "",
        html_template=FIELD,
        css_template=CSS,
        js_on_load=SCRIPT,
        elem_id="image",
        limit=uploads.limit,
        too_large=str(uploads.too_large()),
    )
