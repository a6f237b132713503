"""The passes of the library as their tests run them."""

from lazyfx_server.passes import Pass, Registry

_registry = Registry()

# Each with options that make it work on small models.
LIBRARY: dict[str, Pass] = {
    "analyze": _registry.create("analyze"),
    "batch_fusion": _registry.create("batch_fusion", {"at_least": 2}),
    "convert_dtype": _registry.create("convert_dtype"),
    "decompose": _registry.create("decompose"),
    "functionalize": _registry.create("functionalize"),
    "fuse_attention": _registry.create("fuse_attention"),
    "fuse_linear_bn": _registry.create("fuse_linear_bn"),
    "inductor_joint_graph": _registry.create("inductor_joint_graph"),
    "inductor_post_grad": _registry.create("inductor_post_grad"),
    "inductor_pre_grad": _registry.create("inductor_pre_grad"),
    "merge_matmul": _registry.create("merge_matmul"),
    "no_op_elimination": _registry.create("no_op_elimination"),
    "partition_by_support": _registry.create(
        "partition_by_support", {"supported": ["linear", "add", "matmul", "mm", "conv2d"]}
    ),
    "quantize_weights": _registry.create("quantize_weights", {"min_elements": 64}),
    "reinplace": _registry.create("reinplace"),
    "remove_duplicate_casts": _registry.create("remove_duplicate_casts"),
    "sink_views": _registry.create("sink_views"),
    "split_module": _registry.create("split_module", {"max_nodes": 40}),
}
