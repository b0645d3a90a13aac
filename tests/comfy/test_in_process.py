"""ComfyUI and the pack in the test's own process."""


def test_pack_has_an_entry_point(pack):
    """ComfyUI only calls comfy_entrypoint where NODE_CLASS_MAPPINGS is missing."""
    assert callable(pack.comfy_entrypoint)
    assert getattr(pack, "NODE_CLASS_MAPPINGS", None) is None


def test_node_ids_are_unique(pack_nodes):
    """Every node has an id, and the dictionary lost none of them."""
    assert pack_nodes
    assert len(pack_nodes) == len(set(pack_nodes.values()))


def test_comfyui_writes_elsewhere(comfy, comfyui):
    """Output of tests does not land in the user's ComfyUI."""
    import folder_paths

    assert str(comfyui.path) not in folder_paths.get_output_directory()
