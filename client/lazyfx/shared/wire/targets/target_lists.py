"""Which Python callables, Tensor methods and attribute names a graph may use.

Everything here is data. A name that is not listed cannot be used in a graph, on either side.
Omitted on purpose: files and other input/output, global settings (seeds, defaults, thread counts),
compilers, storage and pointer access, object protocol methods, and functions whose cost is not
bounded by the size of their arguments (`math.factorial`).
"""

# ruff: noqa: SIM905 - long lists of names read best as words

from __future__ import annotations

from typing import Final

# Names that torch.overrides lists (or that look harmless) but that reach outside the graph.
DENIED_FUNCTIONS: Final = frozenset(
    {
        "torch.from_file",
        # As the operator below.
        "torch.range",
        "torch._C._VariableFunctions.range",
        "torch.set_default_dtype",
    }
)

OPERATOR_DENIED: Final = frozenset({"attrgetter", "itemgetter", "methodcaller", "call"})
# The last two are new in Python 3.12 and 3.13: a server with an older version could not run them.
MATH_DENIED: Final = frozenset({"factorial", "comb", "perm", "sumprod", "fma"})

BUILTIN_NAMES: Final = (
    "abs all any bool complex dict divmod float getattr int isinstance len list max min pow "
    "range round slice sorted sum tuple"
).split()

# Callables of torch that torch.overrides does not list as overridable: factories,
# settings that dynamo records as graph nodes, and symbolic-size helpers.
TORCH_NAMES: Final = (
    "Size arange as_strided as_tensor asarray bartlett_window blackman_window empty "
    "empty_permuted empty_strided eye fill finfo full hamming_window hann_window iinfo "
    "kaiser_window linspace logspace normal ones promote_types rand rand_like randint "
    "randint_like randn randn_like randperm result_type scalar_tensor "
    "sparse_bsc_tensor sparse_bsr_tensor sparse_compressed_tensor sparse_coo_tensor "
    "sparse_csc_tensor sparse_csr_tensor tensor tril_indices triu_indices vander zeros "
    "broadcast_shapes is_tensor is_grad_enabled is_inference_mode_enabled is_autocast_enabled "
    "get_autocast_dtype get_default_dtype "
    "sym_constrain_range sym_constrain_range_for_size sym_float sym_fresh_size sym_int sym_ite "
    "sym_max sym_min sym_not sym_sqrt sym_sum _sym_acos _sym_asin _sym_atan _sym_cos _sym_cosh "
    "_sym_log2 _sym_sin _sym_sinh _sym_sqrt _sym_tan _sym_tanh "
    "_check _check_is_size _check_index _check_type _check_value _check_tensor_all _assert "
    "_assert_async _assert_scalar _functional_assert_async _functional_sym_constrain_range "
    "_addmm_activation _conj _neg_view _make_dep_token can_cast Tensor device dtype "
    "cond dropout feature_dropout"
).split()

# Private or deep callables that captures emit, by exact dotted name. Names that
# this torch does not have are skipped.
DEEP_NAMES: Final = (
    # autocast and grad mode
    "torch.amp.autocast_mode._enter_autocast",
    "torch.amp.autocast_mode._exit_autocast",
    "torch._C._set_grad_enabled",
    # dynamo records it; it only counts calls for the builders of torch
    "torch._C._log_api_usage_once",
    "torch.autograd.grad_mode._enter_inference_mode",
    "torch.autograd.grad_mode._exit_inference_mode",
    "torch.autograd.grad_mode.set_grad_enabled",
    "torch.autograd.grad",
    "torch.autograd.function.FunctionCtx",
    "torch._C._autograd._saved_tensors_hooks_disable",
    "torch._C._autograd._saved_tensors_hooks_enable",
    # vmap, grad and jvp as dynamo and export record them
    "torch._functorch.predispatch._vmap_increment_nesting",
    "torch._functorch.predispatch._vmap_decrement_nesting",
    "torch._functorch.predispatch._add_batch_dim",
    "torch._functorch.predispatch._remove_batch_dim",
    "torch._functorch.predispatch._enter_dual_level",
    "torch._functorch.predispatch._exit_dual_level",
    "torch._functorch.predispatch._jvp_increment_nesting",
    "torch._functorch.predispatch._jvp_decrement_nesting",
    "torch._functorch.predispatch._make_dual",
    "torch._functorch.predispatch._unpack_dual",
    "torch._functorch.predispatch._unwrap_for_grad",
    "torch._functorch.predispatch.lazy_load_decompositions",
    "torch._functorch.vmap._vmap_increment_nesting",
    "torch._functorch.vmap._vmap_decrement_nesting",
    "torch._functorch.vmap._add_batch_dim",
    "torch._functorch.vmap._remove_batch_dim",
    "torch._functorch.vmap.lazy_load_decompositions",
    "torch._C._functorch._vmap_increment_nesting",
    "torch._C._functorch._vmap_decrement_nesting",
    "torch._C._functorch._add_batch_dim",
    "torch._C._functorch._remove_batch_dim",
    "torch._C._functorch._grad_increment_nesting",
    "torch._C._functorch._grad_decrement_nesting",
    "torch._C._functorch._jvp_increment_nesting",
    "torch._C._functorch._jvp_decrement_nesting",
    "torch._C._functorch._wrap_for_grad",
    "torch._C._functorch._unwrap_for_grad",
    "torch._C._functorch._unwrap_batched",
    "torch._C._functorch.set_inplace_requires_grad_allowed",
    "torch._C._functorch.get_inplace_requires_grad_allowed",
    "torch._functorch.eager_transforms._autograd_grad",
    "torch._functorch.eager_transforms._create_differentiable",
    "torch._functorch.eager_transforms._assert_wrapped_functional",
    "torch._functorch.eager_transforms.set_inplace_requires_grad_allowed",
    "torch._functorch.eager_transforms._set_tensor_requires_grad",
    "torch.autograd.forward_ad._maybe_load_decompositions",
    "torch._C._set_fwd_grad_enabled",
    "torch._C._is_fwd_grad_enabled",
    "torch._C._enter_dual_level",
    "torch._C._exit_dual_level",
    "torch._make_dual",
    "torch._unpack_dual",
    # fx writes an options object as a call of its class
    "torch.nn.modules.linear_cross_entropy_options.LinearCrossEntropyOptions",
    # attention
    "torch.nn.attention._sdpa_kernel",
    "torch.nn.attention._backend_from_string",
    "torch.nn.attention._cur_sdpa_kernel_backends",
    # torch.tensor of a symbolic number
    "torch._refs.tensor",
    # symbolic sizes
    "torch.fx.experimental.symbolic_shapes.guard_size_oblivious",
    "torch.fx.experimental.symbolic_shapes.sym_and",
    "torch.fx.experimental.symbolic_shapes.sym_or",
    "torch.fx.experimental.symbolic_shapes.sym_eq",
    "torch.fx.experimental.symbolic_shapes.guard_or_true",
    "torch.fx.experimental.symbolic_shapes.guard_or_false",
    "torch.fx.experimental.symbolic_shapes.statically_known_true",
    "torch.fx.experimental.symbolic_shapes.statically_known_false",
    # a read of `.data`, and of an array's attributes
    "torch._C._autograd._get_data_attr",
    "torch._dynamo.utils.numpy_attr_wrapper",
    # optimizers
    "torch._utils._flatten_dense_tensors",
    "torch._utils._unflatten_dense_tensors",
)

# Modules of which all functions listed by torch.overrides are allowed; the first name under which a
# callable is found is its wire name.
FUNCTION_MODULES: Final = (
    "torch",
    "torch.nn.functional",
    "torch._C._nn",
    "torch.linalg",
    "torch.fft",
    "torch.special",
    "torch.nn.init",
    "torch.functional",
    "torch._C._linalg",
    "torch._C._fft",
    "torch._C._special",
    "torch._VF",
    "torch._C._VariableFunctions",
    "torch._C._sparse",
    "torch.sparse",
    "torch.masked",
    "torch.signal.windows",
    "torch.nn.grad",
)

# Modules of pure tensor functions: every function is allowed, overridable or not.
WHOLE_MODULES: Final = (
    "torch._C._nn",
    "torch._C._linalg",
    "torch._C._fft",
    "torch._C._special",
    "torch._C._sparse",
)
WHOLE_MODULES_DENIED: Final = frozenset({"_parse_to"})

# Modules of which all public functions are tensor functions, overridable or not.
PUBLIC_MODULES: Final = (
    "torch.nn.functional",
    "torch.sparse",
    "torch.masked",
    "torch.signal.windows",
    "torch.nn.grad",
)
PUBLIC_MODULES_DENIED: Final = frozenset(
    "as_masked_tensor as_sparse_gradcheck assert_int_or_pair boolean_dispatch "
    "handle_torch_function has_torch_function has_torch_function_unary "
    "has_torch_function_variadic is_masked_tensor masked_tensor to_sparse_semi_structured".split()
)

# Tensor methods that are denied although they are public.
METHODS_DENIED: Final = frozenset(
    "apply_ as_subclass backward const_data_ptr data_ptr dim_order from_file ipu is_shared map2_ "
    "map_ module_load numpy "
    "pin_memory record_stream register_hook register_post_accumulate_grad_hook reinforce "
    "requires_grad_ retain_grad "
    "share_memory share_memory_ solve storage storage_type symeig eig lstsq to_mkldnn tolist "
    "untyped_storage".split()
)
# Dunder methods that captures call.
METHOD_DUNDERS: Final = frozenset(
    "__abs__ __add__ __and__ __bool__ __contains__ __div__ __eq__ __float__ __floordiv__ __ge__ "
    "__getitem__ __gt__ __iadd__ __iand__ __idiv__ __ifloordiv__ __ilshift__ __imod__ __imul__ "
    "__index__ __int__ __invert__ __ior__ __ipow__ __irshift__ __isub__ __itruediv__ __ixor__ "
    "__le__ __len__ __long__ __lshift__ __lt__ __matmul__ __mod__ __mul__ __ne__ __neg__ __or__ "
    "__pos__ __pow__ __radd__ __rand__ __rdiv__ __rfloordiv__ __rlshift__ __rmatmul__ __rmod__ "
    "__rmul__ __ror__ __rpow__ __rrshift__ __rshift__ __rsub__ __rtruediv__ __rxor__ __setitem__ "
    "__sub__ __truediv__ __xor__".split()
)
# Methods of other values in graphs: sizes, numbers, lists, dicts.
OTHER_METHODS: Final = frozenset(
    "append as_integer_ratio bit_length conjugate copy count extend get index insert "
    "is_integer items keys numel pop tolist update values".split()
) - {"tolist"}

# Fields of what torch's functions return (torch.return_types): `x.max(1).values`.
_FIELDS: Final = frozenset(
    "L LD LU P Q R S U V Vh bin_edges eigenvalues eigenvectors exponent hist indices info inverse "
    "logabsdet mantissa max min pivots primal rank residuals sign singular_values solution tangent "
    "values".split()
)
# What builtins.getattr may read from a value.
ATTRIBUTES: Final = _FIELDS | frozenset(
    "H T device dtype imag is_cpu is_complex is_cuda is_leaf is_meta is_mkldnn is_mps "
    "is_nested is_quantized is_sparse is_sparse_csr is_xpu itemsize layout mH mT names nbytes "
    "ndim output_nr real requires_grad retains_grad shape eps max min tiny bits resolution "
    "smallest_normal index type".split()
)

# What dynamo's numpy_attr_wrapper may read from an array.
ARRAY_ATTRIBUTES: Final = frozenset("T flat imag ndim real shape size".split())

# Names that torch.nn.attention._backend_from_string may look up.
ATTENTION_BACKENDS: Final = frozenset(
    "CUDNN_ATTENTION EFFICIENT_ATTENTION ERROR FLASH_ATTENTION MATH OVERRIDEABLE".split()
)

# Callables that look up a name: argument count, position of the name, allowed names.
LOOKUPS: Final = {
    "builtins.getattr": (2, 1, ATTRIBUTES),
    "torch.nn.attention._backend_from_string": (1, 0, ATTENTION_BACKENDS),
    "torch._dynamo.utils.numpy_attr_wrapper": (2, 1, ARRAY_ATTRIBUTES),
}

# Operators of the dispatcher that reach outside the graph.
DENIED_OPERATORS: Final = frozenset(
    {
        "aten::from_file",
        "aten::data",
        "aten::_cufft_set_plan_cache_max_size",
        "aten::_cufft_clear_plan_cache",
        "aten::record_stream",
        "aten::save",
        "aten::manual_seed",
        "aten::seed",
        "aten::set_grad_enabled",
        "aten::warn",
        "aten::format",
        "aten::_print",
        # Kernels, including those for fake tensors, that access operands without checks.
        "aten::_add_batch_dim",
        "aten::_batch_norm_impl_index_backward",
        "aten::_new_zeros_with_same_feature_meta",
        "aten::_nnpack_spatial_convolution",
        "aten::_remove_batch_dim",
        "aten::_thnn_differentiable_gru_cell_backward",
        "aten::_thnn_differentiable_lstm_cell_backward",
        # Divides by a step that is a fraction and becomes zero; torch.arange does not.
        "aten::range",
        "aten::_sobol_engine_draw",
        "aten::_sobol_engine_ff_",
        "aten::_sobol_engine_initialize_state_",
        "aten::_sobol_engine_scramble_",
        "_quantized::wrapped_fbgemm_linear_fp16_weight",
        "quantized::embedding_bag_byte_unpack",
        # Operators that only Inductor itself creates, except prims::fma, which dynamo creates too.
        "prims::_low_memory_max_pool_offsets_to_indices",
        "prims::_low_memory_max_pool_with_offsets",
        "prims::_unsafe_index_put_",
        "prims::inductor_cvt_e8m0_rceil",
        "prims::inductor_force_stride_order",
        "prims::inductor_lookup_seed",
        "prims::inductor_rand_eager_offset",
        "prims::inductor_rand_eager_offsets",
        "prims::inductor_randint",
        "prims::inductor_random",
        "prims::inductor_seed",
        "prims::inductor_seeds",
        "prims::prepare_softmax_online",
    }
)
# Names with a TorchScript overload that crashes the process, by a division by zero or by reading an
# empty list: given numbers, or no tensor, torch picks that overload. Their other overloads must be
# called by full name.
DENIED_PACKETS: Final = frozenset({"aten::copy", "aten::gcd", "aten::remainder", "aten::to"})
# Namespaces that reach other processes, raw memory, device state, or compiler internals; operators
# of "_native" are numbered per process.
DENIED_NAMESPACES: Final = frozenset(
    {
        "_inductor_test",
        "_native",
        "_test",
        "c10d",
        "cuda",
        "debug_mode_ops",
        "debugprims",
        "inductor",
        "mkldnn_prepacked",
        "onnx_symbolic",
        "profiler",
        "static_runtime",
        "symm_mem",
    }
)

# Namespaces of torch whose operators are registered by a lazily imported module; looking up a
# missing name in one imports the module.
LATE_NAMESPACES: Final = {
    "quantized_decomposed": "torch.ao.quantization.fx._decomposed",
    "torch_attn": "torch.nn.attention.varlen",
    "torch_nn": "torch.nn.modules.linear_cross_entropy",
}

# Higher-order operators whose arguments are handles of this process.
DENIED_HIGHER_ORDER: Final = frozenset(
    {
        "aoti_call_delegate",
        "call_torchbind",
        "dynamo_bypassing_wrapper",
        "executorch_call_delegate",
        "inductor_compiled_code",
        "inline_asm_elementwise",
        "invoke_leaf_function",
        "print",
        "run_const_graph",
        "trace_wrapped",
        "triton_kernel_wrapper_functional",
        "triton_kernel_wrapper_mutation",
    }
)
