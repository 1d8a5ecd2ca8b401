"""The memory maps on a page: images to choose from, a slider over decoder layers, the map beside the image."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

from dehvf_kit.data.metrics.exact_match import Prediction
from dehvf_kit_report.memory_maps import MemoryMap
from dehvf_kit_report.page import inline_image

STYLE = """
.maps{display:grid;grid-template-columns:minmax(0,1fr);gap:.9rem}.maps .pick{display:flex;flex-wrap:wrap;gap:.5rem}
.maps .pick button{padding:0;border:3px solid transparent;border-radius:8px;background:none;cursor:pointer;line-height:0}
.maps .pick button[aria-pressed=true]{border-color:var(--accent)}.maps .pick img{width:64px;height:64px;border-radius:5px;
object-fit:cover}.maps .views{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}.maps canvas,.maps .seen{width:min(100%,
260px);aspect-ratio:1;border-radius:6px;image-rendering:pixelated;display:block}.maps .views figure{width:min(100%,260px)}
.maps input[type=range]{width:100%;max-width:540px;accent-color:var(--accent)}.maps label,.maps .layer{display:block}
.maps .bars{display:flex;align-items:flex-end;gap:2px;height:84px;max-width:540px;
border-bottom:1px solid var(--line)}
.maps .bars button{flex:1;min-width:2px;border:0;padding:0;background:var(--line);cursor:pointer}
.maps .bars button.on{background:var(--accent)}
"""
SCRIPT = """
(root=>{const data=JSON.parse(root.querySelector('script[type="application/json"]').textContent);
const find=name=>root.querySelector(name),canvas=find('canvas'),slider=find('input[type=range]'),own=find('input[type=checkbox]');
let now=0;for(const one of data){one.bytes=Uint8Array.from(atob(one.values),c=>c.charCodeAt(0));
one.image=new Image();one.image.src=one.source;one.image.onload=draw}
const bars=find('.bars');for(let l=0;l<data[0].most.length;l++){const b=document.createElement('button');
b.title='layer '+(l+1);b.setAttribute('aria-label','decoder layer '+(l+1));b.onclick=()=>{slider.value=l+1;draw()};bars.append(b)}
const buttons=data.map((one,n)=>{const b=document.createElement('button'),i=document.createElement('img');i.src=one.source;
i.alt=one.question;b.append(i);b.onclick=()=>{now=n;draw()};find('.pick').append(b);return b});
function draw(){const one=data[now],layer=slider.value-1,side=one.side,count=side*side;
const top=own.checked?one.most[layer]:Math.max(...one.most),pen=canvas.getContext('2d'),wide=canvas.width,cell=wide/side;
buttons.forEach((b,n)=>b.setAttribute('aria-pressed',n===now));find('.seen').src=one.source;
pen.clearRect(0,0,wide,wide);if(one.image.complete)pen.drawImage(one.image,0,0,wide,wide);
for(let p=0;p<count;p++){const value=one.bytes[layer*count+p]/255*one.most[layer]/(top||1);
const hue=[[13,8,60],[120,28,109],[237,105,37],[252,255,164]],at=value*3,k=Math.min(2,Math.floor(at)),f=at-k;
pen.fillStyle='rgba('+hue[k].map((c,i)=>Math.round(c+(hue[k+1][i]-c)*f)).join(',')+',.78)';
const x=p%side,y=Math.floor(p/side);pen.fillRect(Math.floor(x*cell),Math.floor(y*cell),Math.ceil(cell),Math.ceil(cell))}
const peak=Math.max(...one.sums);[...bars.children].forEach((b,l)=>{b.style.height=Math.max(2,100*one.sums[l]/(peak||1))+'%';
b.classList.toggle('on',l===layer)});find('.layer').textContent='decoder layer '+(layer+1)+' of '+one.most.length;
find('.most').textContent='brightest patch: '+(top*1).toPrecision(3)+'; all patches of this layer: '+one.sums[layer].toPrecision(3);
find('.question').textContent=one.question;find('.said').textContent=one.said}
slider.oninput=draw;own.onchange=draw;draw()})(document.querySelector('.maps'));
"""


def memory_maps(maps: Sequence[MemoryMap], answers: Mapping[str, Prediction]) -> str:
    """The section's body. answers: by sample id, where they are known."""
    data = json.dumps([_data(one, answers.get(one.sample.id)) for one in maps]).replace("</", "<\\/")
    layers = len(maps[0].written)
    first = 1 + max(range(layers), key=lambda layer: float(maps[0].written[layer].sum()))
    return f"""<style>{STYLE}</style><noscript><p class='note'>The maps need JavaScript.</p></noscript>
<div class='maps'><script type="application/json">{data}</script><div class='pick'></div>
<div><b class='question'></b><br><span class='said soft'></span></div>
<div class='views'><figure><img class='seen' alt='the image as the encoder sees it'>
<figcaption>as the encoder sees it</figcaption></figure>
<figure><canvas width='520' height='520'></canvas><figcaption class='most'></figcaption></figure></div>
<label><b class='layer'></b><input type='range' min='1' max='{layers}' value='{first}' aria-label='decoder layer'></label>
<label><input type='checkbox' checked> each layer on a scale of its own</label>
<div><div class='bars'></div><div class='soft'>contribution of all patches, by decoder layer; click one</div></div></div>
<script>{SCRIPT}</script>"""


def _data(one: MemoryMap, answer: Prediction | None) -> dict[str, Any]:
    written = one.written.flatten(1)
    most = written.amax(1)
    shares = (written / most.clamp(min=1e-30)[:, None] * 255).round().byte()
    said = f"correct: {one.sample.answer}"
    if answer is not None:
        said = f"predicted: {answer.prediction or '(nothing)'}" + ("" if answer.right else f"; correct: {answer.answer}")
    return {
        "source": inline_image(one.image, 260),
        "question": one.sample.question,
        "said": said,
        "side": one.written.shape[-1],
        "values": base64.b64encode(bytes(shares.flatten().tolist())).decode(),
        "most": [float(f"{value:.4g}") for value in most.tolist()],
        "sums": [float(f"{value:.4g}") for value in written.sum(1).tolist()],
    }
