"""What is known of torch: which operations give a view of their input, and which write into it.

Some operations return their input, or a view of it, only at times (``reshape`` of a tensor that is laid out
for it, ``float`` of a tensor of floats). What is written into the result is then written into the input, so
they count as views. A test compares the tables with what torch says of its operators.
"""

from __future__ import annotations

# Methods, and functions of `torch` by the same name, whose result shares memory with the tensor.
VIEWS = frozenset(
    (
        "adjoint as_strided broadcast_to chunk conj contiguous detach diagonal dsplit expand expand_as flatten "
        "hsplit movedim moveaxis narrow permute positive ravel reshape reshape_as resolve_conj resolve_neg "
        "select split split_with_sizes squeeze swapaxes swapdims t tensor_split transpose unbind unflatten unfold "
        "unsafe_chunk unsafe_split unsqueeze view view_as view_as_complex view_as_real vsplit numpy coalesce values "
        "ccol_indices col_indices crow_indices indices row_indices "
        # The same tensor, if it is what is asked for already.
        "bfloat16 bool byte cdouble cfloat chalf char cpu cuda double float half int long short to type type_as "
        "pin_memory dequantize conj_physical sum_to_size to_dense"
    ).split()
)
# Of these, the ones that copy or not, depending on what they are given.
SOMETIMES = frozenset(
    (
        "bfloat16 bool byte cdouble cfloat chalf char coalesce contiguous cpu cuda double flatten float half int long "
        "pin_memory ravel reshape reshape_as short sum_to_size to to_dense type type_as"
    ).split()
)
VIEW_ATTRIBUTES = frozenset({"T", "H", "mT", "mH", "data", "real", "imag"})
# Assigned to, these attributes change the tensor.
WRITTEN_ATTRIBUTES = frozenset({"data", "real", "imag"})

# Functions without a method of that name.
VIEW_FUNCTIONS = frozenset(
    (
        "torch.as_tensor torch.asarray torch.atleast_1d torch.atleast_2d torch.atleast_3d torch.broadcast_tensors "
        "torch.from_numpy torch.nn.Parameter torch.nn.parameter.Parameter torch.real torch.imag copy.copy "
        "torch.meshgrid torch.nn.functional.dropout "
        "numpy.asarray numpy.atleast_1d numpy.atleast_2d numpy.broadcast_to numpy.ravel numpy.reshape "
        "numpy.squeeze numpy.transpose numpy.expand_dims torch.utils.dlpack.from_dlpack torch.from_dlpack "
        "torch.utils.dlpack.to_dlpack torch.to_dlpack torch.frombuffer"
    ).split()
)

# These end in an underscore and change no data.
HARMLESS = frozenset({"detach_", "requires_grad_", "share_memory_"})

# In-place methods, without the underscore, for objects of which only the use says that they are tensors.
IN_PLACE = frozenset(
    (
        "abs absolute acos acosh add addbmm addcdiv addcmul addmm addmv addr apply arccos arccosh arcsin arcsinh "
        "arctan arctan2 arctanh as_strided asin asinh atan atan2 atanh baddbmm bernoulli bitwise_and "
        "bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor cauchy ceil clamp clamp_max "
        "clamp_min clip conj_physical copy copysign cos cosh cumprod cumsum deg2rad digamma div divide eq erf erfc "
        "erfinv exp exp2 expm1 exponential fill fill_diagonal fix float_power floor floor_divide fmod frac gcd ge "
        "geometric greater greater_equal gt heaviside hypot i0 igamma igammac index_add index_copy index_fill "
        "index_put index_reduce lcm ldexp le lerp less less_equal lgamma log log10 log1p log2 log_normal "
        "logical_and logical_not logical_or logical_xor logit lt map map2 masked_fill masked_scatter mul multiply "
        "mvlgamma nan_to_num ne neg negative nextafter normal not_equal polygamma pow put rad2deg random "
        "reciprocal relu remainder renorm resize resize_as resize_as_sparse round rsqrt scatter scatter_add "
        "scatter_reduce set sgn sigmoid sign sin sinc sinh sparse_resize sparse_resize_and_clear sqrt square squeeze "
        "sub subtract swapaxes swapdims t tan tanh transpose tril triu true_divide trunc uniform unsqueeze xlogy zero"
    ).split()
)
# `x @= y` is no in-place operation: tensors have none, and the name is bound anew.
IN_PLACE_DUNDERS = frozenset(
    "__iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __imod__ __ipow__ __iand__ __ior__ __ixor__ "
    "__ilshift__ __irshift__ __setitem__".split()
)

# Functions that write into an argument: its position and its name.
WRITERS: dict[str, tuple[int, str]] = {
    "torch.distributed.all_gather": (0, "tensor_list"),
    "torch.distributed.all_gather_coalesced": (0, "output_tensor_lists"),
    "torch.distributed.all_gather_into_tensor": (0, "output_tensor"),
    "torch.distributed.all_reduce": (0, "tensor"),
    "torch.distributed.all_reduce_coalesced": (0, "tensors"),
    "torch.distributed.all_to_all": (0, "output_tensor_list"),
    "torch.distributed.all_to_all_single": (0, "output"),
    "torch.distributed.broadcast": (0, "tensor"),
    "torch.distributed.gather": (1, "gather_list"),
    "torch.distributed.irecv": (0, "tensor"),
    "torch.distributed.recv": (0, "tensor"),
    "torch.distributed.reduce": (0, "tensor"),
    "torch.distributed.reduce_scatter": (0, "output"),
    "torch.distributed.reduce_scatter_tensor": (0, "output"),
    "torch.distributed.scatter": (0, "tensor"),
    "torch.utils.swap_tensors": (0, "t1"),
    "numpy.copyto": (0, "dst"),
    "numpy.put": (0, "a"),
    "operator.setitem": (0, "a"),
    **{
        f"operator.i{name}": (0, "a")
        for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split()
    },
}

# What these give is a number, a size or the like: no tensor, and as an index no tensor of indices.
NUMBERS = frozenset(
    (
        "dim dtype device element_size get_device is_contiguous is_cuda is_floating_point is_sparse item itemsize "
        "layout nbytes ndim ndimension nelement numel requires_grad shape size storage_offset stride names "
        "data_ptr is_complex is_signed is_inference is_leaf is_meta is_pinned is_quantized"
    ).split()
)
# Without arguments these give a tensor of no dimension, which as an index is as good as a number.
REDUCTIONS = frozenset(
    "all amax amin any argmax argmin count_nonzero max mean median min norm prod std sum var".split()
)

# Tensors, and arrays that share their memory.
TENSOR_TYPES = frozenset(
    {"torch.Tensor", "torch._tensor.Tensor", "torch.nn.Parameter", "torch.nn.parameter.Parameter", "numpy.ndarray"}
    | {
        f"torch.{kind}Tensor"
        for kind in "Float Double Half BFloat16 Byte Char Short Int Long Bool".split()
    }
)  # fmt: skip
# Called with a function, these give one that does the same.
WRAPPERS = frozenset(
    "torch.compile torch.jit.script torch.vmap torch.func.vmap functools.cache functools.lru_cache functools.wraps "
    "torch.no_grad torch.inference_mode torch.compiler.disable torch._dynamo.disable torch.func.functionalize".split()
)


def writes_in_place(name: str, *, known: bool) -> bool:
    """Whether a method of this name changes the data of the tensor that it is called on.

    Args:
        name: the method's name.
        known: whether the object is known to be a tensor; otherwise only torch's own names count.
    """
    if name in IN_PLACE_DUNDERS:
        return known
    if name.endswith("_") and not name.startswith("_") and name not in HARMLESS:
        return known or name[:-1] in IN_PLACE
    return False


def writing_function(name: str) -> bool:
    """Whether a function, by its dotted name, writes into its first argument by torch's convention."""
    module, _, function = name.rpartition(".")
    if not (module == "torch" or module.startswith("torch.")) or module.startswith("torch.ops"):
        return False
    if function.startswith("_foreach_"):
        return function.endswith("_")
    return function.endswith("_") and not function.startswith("_") and function not in HARMLESS
