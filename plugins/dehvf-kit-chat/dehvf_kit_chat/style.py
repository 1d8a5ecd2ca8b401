"""How the chat page looks: fonts of the system, nothing from other hosts; the heat maps in the page's light and dark colours."""

from __future__ import annotations

import gradio as gr

CSS = """
.gradio-container{--ink:var(--body-text-color);--soft:#5a6477;--line:#dfe3ea;--heat:#2a62bd}
.dark .gradio-container,.gradio-container.dark{--soft:#a3acbe;--line:#39404f;--heat:#7fb0ff}
.gradio-container,.dark .gradio-container{--block-info-text-color:var(--soft);--body-text-color-subdued:var(--soft)}
.gradio-container{max-width:1400px!important;margin:0 auto!important}
#title h1{font-size:1.4rem;font-weight:600;margin:0}.name h2{font-size:1rem;font-weight:600;overflow-wrap:anywhere;margin:.4rem 0 0}
.depths h3{font-size:.95rem;font-weight:600;margin:0 0 .4rem}
#preview img{display:inline-block;max-width:100%;max-height:180px;border-radius:8px;
margin:0 .4rem .4rem 0;vertical-align:top}
.fault:not(:has(p)){display:none!important}#preview:not(:has(p)):not(:has(img)){display:none!important}
#temperature input[type=range]::-webkit-slider-thumb{box-shadow:0 0 0 1px var(--soft)}
.earlier:not(:has(p)){display:none!important}
.earlier p{overflow-wrap:anywhere;white-space:pre-line;margin:0 0 .3rem;
padding:.4rem .7rem;border-radius:8px}
.earlier .asked{background:var(--background-fill-secondary);margin-left:2rem}
.earlier .said{border:1px solid var(--line);margin-right:2rem}
.keeps{color:var(--soft);font-size:.88rem;margin:.2rem 0}
[role=alert]{border:1px solid var(--error-border-color);background:var(--error-background-fill);color:var(--error-text-color);
border-radius:8px;padding:.6rem .8rem;overflow-wrap:anywhere;white-space:pre-line;margin:0}
.depths .row{contain:inline-size;display:flex;flex-wrap:wrap;gap:1.2rem}.depths .row>*{max-width:100%}.depths .wide{overflow-x:auto}
@media(max-width:640px){.depths svg{width:100%;min-width:290px;height:auto}}
.depths .note,.depths .missing{color:var(--soft);font-size:.88rem;margin:.4rem 0 0}
"""
SYSTEM = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Gradio's default theme with fonts that every system has: its own would be fetched."""
    return gr.themes.Default(font=SYSTEM, font_mono=MONO, primary_hue="blue")
