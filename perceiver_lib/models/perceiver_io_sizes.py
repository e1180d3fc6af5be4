"""The sizes of Perceiver IO that are in print or released, as presets of its config (arXiv 2107.14795)."""

from __future__ import annotations

import dataclasses
from typing import Literal, TypeVar

from perceiver_lib.adapters import EmbeddingAdapterConfig, FeatureAdapterConfig, LearnedPositions
from perceiver_lib.blocks import LayerConfig
from perceiver_lib.decoder import DecoderConfig
from perceiver_lib.modalities.multimodal import ModalityAdaptersConfig
from perceiver_lib.models.convolution import ConvolutionConfig
from perceiver_lib.positions import FourierFeatures
from perceiver_lib.queries import InputQueries, LearnedQueries, PositionQueries

Mode = Literal['deepmind', 'hugging_face']
Config = TypeVar('Config')


class PublishedSizes:
  """What `PerceiverIOConfig` offers besides its fields."""

  @classmethod
  def masked_language(
    cls: type[Config],
    *,
    num_latents: int,
    num_latent_channels: int,
    num_self_attends: int,
    num_channels: int,
    qk_channels: int,
    num_heads: int = 8,
    length: int = 2048,
    vocabulary_size: int = 262,
    dropout: float = 0.0,
  ) -> Config:
    """Ids in, a score of every id at every place out: learned queries, and an output tied to the input's embedding.

    Args:
      num_channels: width of the embedding, of the learned positions, and of the queries.
      length: places in the text, M = O.
    """
    layer = LayerConfig(num_heads=num_heads, qk_channels=qk_channels, v_channels=num_latent_channels, dropout=dropout)
    return cls(
      input_adapter=EmbeddingAdapterConfig(
        num_embeddings=vocabulary_size,
        num_channels=num_channels,
        position=LearnedPositions(shape=(length,), num_channels=num_channels),
      ),
      num_latents=num_latents,
      num_latent_channels=num_latent_channels,
      num_self_attends_per_block=num_self_attends,
      cross_attend=layer,
      self_attend=layer,
      decoder=DecoderConfig(
        queries=LearnedQueries(num_queries=length, num_channels=num_channels),
        num_outputs=vocabulary_size,
        output='tied',
        cross_attend=dataclasses.replace(layer, v_channels=num_channels, query_residual=False),
      ),
    )

  @classmethod
  def paper_language(cls: type[Config], size: Literal['bytes', 'sentencepiece', 'bytes_large'] = 'bytes') -> Config:
    """Masked language modelling (Tabs. 1 and 11; widths of queries from the released model's colab).

    201,108,230 parameters for bytes, 223,155,456 for SentencePiece, 425,607,430 for the large one (IO++).
    """
    if size not in ('bytes', 'sentencepiece', 'bytes_large'):
      raise ValueError(f'size must be bytes, sentencepiece or bytes_large; got {size!r}.')
    large, pieces = size == 'bytes_large', size == 'sentencepiece'
    return cls.masked_language(
      num_latents=256,
      num_latent_channels=1536 if large else 1280,
      num_self_attends=40 if large else 26,
      num_channels=768,
      qk_channels=256,
      length=512 if pieces else 2048,
      vocabulary_size=32_000 if pieces else 262,
    )

  @classmethod
  def paper_imagenet(cls: type[Config], positions: Literal['fourier', 'learned', 'convolution'] = 'fourier') -> Config:
    """ImageNet, configuration A (Tabs. 7 and 8): 512 x 1024 latents, 8 times the same 6 self-attends, one class query.

    48,440,627 parameters with Fourier features, 62,255,848 with learned positions, 48,646,522 with the convolution and
    the scale and offset of its batch norm, whose statistics are stored: it is for inference and does not learn them.
    """
    fourier = FourierFeatures(num_bands=64, max_resolution=(224, 224))
    learned = LearnedPositions(shape=(224, 224), num_channels=256, num_projected_channels=256)
    adapters = {
      'fourier': FeatureAdapterConfig(num_values=3, position=fourier),
      'learned': FeatureAdapterConfig(num_values=3, num_projected_channels=256, position=learned),
      'convolution': FeatureAdapterConfig(
        num_values=64, position=dataclasses.replace(fourier, max_resolution=(56, 56))
      ),
    }
    if positions not in adapters:
      raise ValueError(f'positions must be one of {", ".join(adapters)}; got {positions!r}.')
    return cls(
      input_adapter=adapters[positions],
      num_latents=512,
      num_latent_channels=1024,
      num_blocks=8,
      decoder=DecoderConfig(
        queries=LearnedQueries(num_queries=1, num_channels=1024),
        num_outputs=1000,
        # deepmind-research's colabs: the residual is off with learned positions only.
        cross_attend=LayerConfig(num_heads=1, query_residual=positions != 'learned'),
      ),
      preprocessor=ConvolutionConfig(image_shape=(224, 224, 3)) if positions == 'convolution' else None,
    )

  @classmethod
  def optical_flow(
    cls: type[Config],
    *,
    image_shape: tuple[int, ...],
    num_latents: int,
    num_latent_channels: int,
    num_self_attends: int,
    num_heads: int,
    num_cross_heads: int = 1,
    qk_channels: int | None = None,
    num_bands: int = 64,
  ) -> Config:
    """Two frames in, one vector a pixel out: input features are the queries, and the output starts at zero flow.

    Args:
      image_shape: height and width whose Nyquist frequency is the top band.
      num_heads: of the self-attends.
      num_cross_heads: of the encoder's read.
      qk_channels: of both cross-attends; None = the width of what they read, as published.
    """
    return cls(
      input_adapter=FeatureAdapterConfig(
        num_values=54,  # `modalities.optical_flow.flow_inputs`
        num_projected_channels=64,
        position=FourierFeatures(num_bands=num_bands, max_resolution=image_shape),
      ),
      num_latents=num_latents,
      num_latent_channels=num_latent_channels,
      num_self_attends_per_block=num_self_attends,
      cross_attend=LayerConfig(num_heads=num_cross_heads, qk_channels=qk_channels),
      self_attend=LayerConfig(num_heads=num_heads),
      decoder=DecoderConfig(
        queries=InputQueries(),
        num_outputs=2,
        output='zeros',
        cross_attend=LayerConfig(num_heads=1, qk_channels=qk_channels, query_residual=False),
      ),
    )

  @classmethod
  def paper_flow(cls: type[Config], size: Literal['large', 'small'] = 'large') -> Config:
    """Optical flow on 368 x 496 (Tab. 3, App. H): 41,057,134 parameters, or 27,908,974 at 16 layers, 1,024 latents."""
    if size not in ('large', 'small'):
      raise ValueError(f'size must be large or small; got {size!r}.')
    return cls.optical_flow(
      image_shape=(368, 496),
      num_latents=2048 if size == 'large' else 1024,
      num_latent_channels=512,
      num_self_attends=24 if size == 'large' else 16,
      num_heads=16,
    )

  @classmethod
  def multimodal(
    cls: type[Config],
    *,
    num_latents: int,
    num_latent_channels: int,
    num_self_attends: int,
    num_heads: int,
    video_cells: tuple[int, int, int] = (16, 56, 56),
    num_samples: int = 30_720,
    samples_per_patch: int = 16,
    num_labels: int = 700,
    num_label_channels: int = 1024,
    num_outputs: int = 512,
    known_labels: bool = False,
  ) -> Config:
    """A labelled video with sound in and out; the label is masked, so that its output classifies the video.

    Args:
      num_heads: of the self-attends.
      video_cells: frames, rows and columns of blocks of 4 x 4 pixels; outputs are pixels, asked for by position.
      num_samples: of the sound, whose tokens are patches of `samples_per_patch`.
      num_label_channels: of the label's learned query.
      num_outputs: channels before the heads of the modalities.
      known_labels: for training: a label is masked only where it is hidden (`multimodal.autoencoding_inputs`).
    """
    video = FourierFeatures(num_bands=32, max_resolution=video_cells)
    sound = FourierFeatures(num_bands=192, max_resolution=(num_samples,))
    inputs = {
      'audio': FeatureAdapterConfig(num_values=samples_per_patch, position=sound),
      'image': FeatureAdapterConfig(num_values=4 * 4 * 3, position=video),
      'label': FeatureAdapterConfig(num_values=num_labels),
    }
    queries = {
      'audio': PositionQueries(position=sound),
      'image': PositionQueries(position=video),
      'label': LearnedQueries(num_queries=1, num_channels=num_label_channels),
    }
    # The least padding, and with it the widths, are those of deepmind-research's colab.
    num_channels, num_query_channels = (
      max(adapter.num_channels for adapter in adapters.values()) + least
      for adapters, least in ((inputs, 4), (queries, 2))
    )
    return cls(
      input_adapter=ModalityAdaptersConfig(
        modalities=tuple(inputs.items()),
        num_channels=num_channels,
        masked=() if known_labels else ('label',),
        masked_where_zero=('label',) if known_labels else (),
      ),
      num_latents=num_latents,
      num_latent_channels=num_latent_channels,
      num_self_attends_per_block=num_self_attends,
      self_attend=LayerConfig(num_heads=num_heads),
      decoder=DecoderConfig(
        queries=ModalityAdaptersConfig(modalities=tuple(queries.items()), num_channels=num_query_channels),
        num_outputs=num_outputs,
        cross_attend=LayerConfig(num_heads=1, query_residual=False),
        heads=(('audio', samples_per_patch), ('image', 3), ('label', num_labels)),
      ),
    )

  @classmethod
  def paper_multimodal(cls: type[Config]) -> Config:
    """Autoencoding of Kinetics-700 (section 4.3, App. I, the released model's colab): 19,858,855 parameters."""
    return cls.multimodal(num_latents=784, num_latent_channels=512, num_self_attends=8, num_heads=8)

  def in_mode(self: Config, mode: Mode) -> Config:
    """The same sizes as deepmind-research computes them, as all presets do, or as Hugging Face's transformers does.

    What differs is in the table of `perceiver_lib.pretrained`.
    """
    if mode not in ('deepmind', 'hugging_face'):
      raise ValueError(f'mode must be deepmind or hugging_face; got {mode!r}.')
    adapter, gelu = self.input_adapter, {'activation': 'gelu_tanh' if mode == 'deepmind' else 'gelu_erf'}
    learned = isinstance(adapter, FeatureAdapterConfig) and isinstance(adapter.position, LearnedPositions)
    residual = {'query_residual': mode == 'hugging_face'} if learned else {}
    layer = dataclasses.replace(self.decoder.cross_attend, **gelu, **residual)
    convolution = self.preprocessor
    return dataclasses.replace(
      self,
      cross_attend=dataclasses.replace(self.cross_attend, **gelu),
      self_attend=dataclasses.replace(self.self_attend, **gelu),
      decoder=dataclasses.replace(self.decoder, cross_attend=layer),
      preprocessor=None if convolution is None else dataclasses.replace(convolution, padding=mode),
    )
