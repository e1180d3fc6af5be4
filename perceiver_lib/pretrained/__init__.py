"""Released weights in these models: DeepMind's, Hugging Face's and krasserm's, exactly.

    model = PerceiverIO.from_pretrained('deepmind/language-perceiver')                      # id, folder or file
    model = PerceiverIO.from_pretrained('deepmind/language-perceiver', mode='hugging_face')
    model.save_pretrained('my_model')                                                       # transformers reads it

DeepMind's six models exist twice, as deepmind-research computes them and as Hugging Face's transformers does, and the
two differ. `mode` decides all of it, in presets too: `PerceiverIOConfig.paper_imagenet('convolution').in_mode(...)`.
Differences are those of the outputs, over the largest output, at full size with the random weights of
`python -m tests.pretrained.deviations`; with trained weights they are others.

| what | 'deepmind' (default) | 'hugging_face' | difference |
|---|---|---|---|
| GELU, all models | tanh | erf | language 1.8e-4, learned 1.4e-4, convolution 1.9e-4 |
| padding of vision-perceiver-conv | SAME: 56 x 56 tokens | 3 pixels, none in the maximum: 55 x 55 | 7.3e-3 |
| its kernel, which the converter transposed | turned back on loading | as in the file | 5.5e-3 |
| decoder of vision-perceiver-learned | without the query | adds the query to what it read | 0.22 |

Three more are no matter of mode. An example without a single valid input has the mean of its padding as a read there
and exactly zero in deepmind-research; here it is refused with a sentence, and inside jit it is zero. A query that is
not valid has an output there as if it were valid, here zero. transformers drops a tenth of all attention weights in
training unless told otherwise; here nothing is dropped unless `LayerConfig.dropout` says so.

krasserm's Perceiver IO models are those of DeepMind again, and its own fine-tuned ones, as well as what anybody trained
in transformers, want mode='hugging_face'. Its Perceiver AR models exist once and have no mode.

Around the weights: photographs as the ImageNet models take them (`modalities.pixels.imagenet_image`), another image
size for learned positions (`PerceiverIO.with_grid`), known and hidden labels of videos (`modalities.multimodal`), piano
music as events (`modalities.midi_events`) and text as pieces of words (`modalities.pieces`).
"""

from __future__ import annotations

from perceiver_lib.pretrained.loading import RELEASED, load_pretrained, save_pretrained, verify

__all__ = ['RELEASED', 'load_pretrained', 'save_pretrained', 'verify']
