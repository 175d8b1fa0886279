"""Images as sequences of patches."""

import torch
from torch import Tensor, nn


class VisionEmbedding(nn.Module):
    """A linear map of each patch, with a learned vector instead of masked patches, and a class token in front.

    "An Image is Worth 16x16 Words", arXiv:2010.11929, sec. 3.1; masked patches are BEiT's, arXiv:2106.08254, sec. 2.3.

    Args:
        patch_size: pixels, of a patch's sides.
        channels: of an image.
        embed_dim: width of a patch's vector.
        mask_token: whether patches can be masked.
        class_token: whether there is a class token.
    """

    def __init__(self, patch_size: int, channels: int, embed_dim: int, *, mask_token: bool, class_token: bool):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(channels, embed_dim, patch_size, stride=patch_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if mask_token else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dim)) if class_token else None

    def forward(self, images: Tensor, masked_patches: Tensor | None = None) -> Tensor:
        """(batch, channels, height, width) to (batch, patches, embed_dim), row by row, after the class token.

        Args:
            images: height and width are multiples of the patch size.
            masked_patches: (batch, patches), True or 1 for patches that are hidden.

        Raises:
            ValueError: patches do not divide the image, or cannot be masked.
        """
        height, width = images.shape[-2:]
        whole = [side - side % self.patch_size or self.patch_size for side in (height, width)]
        if whole != [height, width]:
            raise ValueError(
                f"an image of {height} x {width} pixels is not made of whole patches of patch_size "
                f"({self.patch_size}); crop or resize it to {whole[0]} x {whole[1]}."
            )
        return self.tokens(self.proj(images).flatten(2).transpose(1, 2), masked_patches)

    def tokens(self, x: Tensor, masked_patches: Tensor | None = None) -> Tensor:
        """Mapped patches, hidden where they are masked, after the class token.

        Args:
            x: (batch, patches, embed_dim), patches after the linear map.
            masked_patches: (batch, patches), True or 1 for patches that are hidden.

        Returns:
            (batch, tokens, embed_dim).

        Raises:
            ValueError: patches cannot be masked.
        """
        if masked_patches is not None:
            if self.mask_token is None:
                raise ValueError("masked patches were given to an embedding without a mask token.")
            x = torch.where(masked_patches.bool().unsqueeze(-1), self.mask_token.to(x.dtype), x)
        if self.cls_token is not None:
            x = torch.cat((self.cls_token.to(x.dtype).expand(x.size(0), -1, -1), x), 1)
        return x
