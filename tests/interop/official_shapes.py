"""Names and shapes of an official state_dict, in its order, spelt out without the package."""


def official_shapes(
    depths, dims, *, classes=6, channels=3, patch=4, states=16, first_version=False
) -> dict[str, tuple[int, ...]]:
    """Returns shapes by name; `first_version` is the block of official commit ba326fe."""
    shapes = {
        "patch_embed.proj.weight": (dims[0], channels, patch, patch),
        "patch_embed.proj.bias": (dims[0],),
        **_norm("patch_embed.norm", dims[0]),
    }
    for i, (depth, dim) in enumerate(zip(depths, dims, strict=True)):
        for j in range(depth):
            block = _block(dim, states, first_version)
            shapes |= {f"layers.{i}.blocks.{j}.{name}": shape for name, shape in block.items()}
        if i < len(depths) - 1:
            shapes[f"layers.{i}.downsample.reduction.weight"] = (2 * dim, 4 * dim)
            shapes |= _norm(f"layers.{i}.downsample.norm", 4 * dim)
    if classes:
        shapes |= {"head.weight": (classes, dims[-1]), "head.bias": (classes,)}
    return shapes


def _block(dim, states, first_version):
    half = dim // 2
    rank = (half + 15) // 16
    scan = "self_attention"
    shapes = {
        **_norm("ln_1", half),
        f"{scan}.x_proj_weight": (4, rank + 2 * states, dim),
        f"{scan}.dt_projs_weight": (4, dim, rank),
        f"{scan}.dt_projs_bias": (4, dim),
        f"{scan}.A_logs": (4 * dim, states),
        f"{scan}.Ds": (4 * dim,),
        f"{scan}.in_proj.weight": (2 * dim, half),
        f"{scan}.conv2d.weight": (dim, 1, 3, 3),
        f"{scan}.conv2d.bias": (dim,),
        **_norm(f"{scan}.out_norm", dim),
        f"{scan}.out_proj.weight": (half, dim),
    }
    branch = "conv33conv33conv11"
    index = 0
    if not first_version:
        shapes |= _batch_norm(f"{branch}.0", half)
        index = 1
    for _ in range(2):
        shapes |= _conv(f"{branch}.{index}", half, half, 3)
        shapes |= _batch_norm(f"{branch}.{index + 1}", half)
        index += 3  # convolution, norm, ReLU
    shapes |= _conv(f"{branch}.{index}", half, half, 1)
    if first_version:
        shapes |= _conv("finalconv11", dim, dim, 1)
    return shapes


def _norm(name, features):
    return {f"{name}.weight": (features,), f"{name}.bias": (features,)}


def _batch_norm(name, features):
    return {
        **_norm(name, features),
        f"{name}.running_mean": (features,),
        f"{name}.running_var": (features,),
        f"{name}.num_batches_tracked": (),
    }


def _conv(name, n_in, n_out, side):
    return {f"{name}.weight": (n_out, n_in, side, side), f"{name}.bias": (n_out,)}
