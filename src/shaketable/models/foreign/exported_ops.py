"""The operators that an exported program of an image classifier may use.

A `.pt2` program names its operators by text, and torch resolves the text with `getattr` from the top of `torch`, `math` or
`operator`: `torch.os.system` is a name like any other. Hence a list of what is allowed, never of what is not. All of these
compute on tensors alone: none reads or writes files (as `aten.from_file` and `aten.save` do), resizes storages, or runs
another program. An in-place form (`relu_`) is allowed where its plain form is.
"""

_POINTWISE = """
    abs acos acosh add addcdiv addcmul alias asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or bitwise_xor ceil
    celu clamp clamp_max clamp_min clip clone contiguous copy cos cosh deg2rad detach div divide dropout elu eq erf erfc
    erfinv exp exp2 expm1 feature_alpha_dropout feature_dropout fill floor floor_divide fmod frac gelu glu ge greater
    greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside isfinite isinf isnan leaky_relu le lerp less
    less_equal lift_fresh lift_fresh_copy log log10 log1p log2 log_sigmoid logaddexp logical_and logical_not logical_or
    logical_xor logit lt masked_fill maximum minimum mish mul multiply nan_to_num ne neg negative not_equal positive pow prelu
    reciprocal relu relu6 remainder round rrelu rsqrt rsub selu sgn sigmoid sign silu sin sinh softplus softshrink sqrt
    square sub subtract tan tanh threshold to true_divide trunc type_as where xlogy zero zero_
    """

_REDUCING = """
    all amax amin aminmax any argmax argmin count_nonzero cumprod cumsum frobenius_norm kthvalue log_softmax logcumsumexp
    logsumexp max mean median min norm prod softmax std std_mean sum topk sort argsort var var_mean linalg_vector_norm
    linalg_norm linalg_matrix_norm cosine_similarity cross_entropy_loss nll_loss mse_loss renorm
    """

_SHAPING = """
    broadcast_to cat channel_shuffle chunk column_stack concat constant_pad_nd diagonal diag expand expand_as
    flatten flip gather hstack im2col col2im index index_fill index_put index_select masked_select movedim moveaxis
    narrow numpy_T pad permute pixel_shuffle pixel_unshuffle ravel reflection_pad1d reflection_pad2d reflection_pad3d
    repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d reshape reshape_as roll rot90 scatter
    scatter_add select select_scatter slice slice_scatter split split_with_sizes squeeze stack swapaxes t take
    take_along_dim tensor_split tile transpose tril triu unbind unflatten unfold unsqueeze view view_as vstack
    zeros zeros_like ones ones_like full full_like empty empty_like new_zeros new_ones new_full new_empty arange linspace
    eye scalar_tensor rand rand_like randn randn_like bernoulli one_hot meshgrid sym_size sym_numel sym_stride
    sym_storage_offset
    """

_LAYERS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d addbmm addmm addmv affine_grid_generator avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bilinear
    bmm channel_shuffle conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution cudnn_batch_norm
    dot einsum embedding grid_sampler grid_sampler_2d grid_sampler_3d group_norm gru inner instance_norm layer_norm linear
    lstm matmul max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices mm
    mv native_batch_norm native_dropout native_group_norm native_layer_norm outer rms_norm rnn_relu rnn_tanh
    scaled_dot_product_attention tensordot upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
    upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d _assert_scalar _assert_tensor_metadata _convolution _log_softmax
    _native_batch_norm_legit _native_batch_norm_legit_no_training _safe_softmax
    _scaled_dot_product_flash_attention_for_cpu _softmax _to_copy _unsafe_view _upsample_bicubic2d_aa
    _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d _weight_norm
    sym_constrain_range sym_constrain_range_for_size
    """

ATEN = frozenset(" ".join((_POINTWISE, _REDUCING, _SHAPING, _LAYERS)).split())
"""Names of operators in `torch.ops.aten` that are allowed, in any overload."""

OTHER = frozenset(
    [f"_operator.{name}" for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "pos", "getitem")]
    + [f"_operator.{name}" for name in ("eq", "ne", "lt", "le", "gt", "ge", "and_", "or_")]
    + [f"torch.sym_{name}" for name in ("int", "float", "not", "min", "max", "ite", "sqrt")]
    + [f"math.{name}" for name in ("trunc", "floor", "ceil")]
    + [f"torch.ops.higher_order.{name}" for name in ("wrap_with_set_grad_enabled", "wrap_with_autocast")]
)
"""Whole names that are allowed besides: arithmetic on sizes, and the two wrappers of a region. Powers and shifts of sizes
are left out: two small numbers can ask for a number that fills the memory."""


def allowed(target: str) -> bool:
    """Whether a program may use the operator of this name, for example `torch.ops.aten.conv2d.default`."""
    if target in OTHER:
        return True
    name, _, overload = target.removeprefix("torch.ops.aten.").partition(".")
    if not target.startswith("torch.ops.aten.") or not overload.isidentifier() or overload.startswith("__"):
        return False
    return name in ATEN or name.removesuffix("_") in ATEN


def in_place(target: str) -> bool:
    """Whether the operator of this name writes into its first argument."""
    return target.startswith("torch.ops.aten.") and target.split(".")[3].endswith("_")
