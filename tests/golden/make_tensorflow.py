"""Makes tensorflow_tiny/ and tensorflow_dtypes/: checkpoints that TensorFlow itself wrote.

As OpenAI did: tf.compat.v1.train.Saver in graph mode, variables named as in its model.py. Sizes are
tiny and all different; eleven layers, because the index sorts h10 before h2. `expected.npz` beside
each holds what TensorFlow reads back. Run from anywhere: python tests/golden/make_tensorflow.py
"""

import json
from pathlib import Path

import numpy as np
import tensorflow as tf

HERE = Path(__file__).parent
HPARAMS = {"n_vocab": 29, "n_ctx": 7, "n_embd": 6, "n_head": 2, "n_layer": 11}


def gpt2_shapes(n_vocab, n_ctx, n_embd, n_head, n_layer):
    c = n_embd
    shapes = {"model/wte": (n_vocab, c), "model/wpe": (n_ctx, c)}
    shapes |= {"model/ln_f/g": (c,), "model/ln_f/b": (c,)}
    layer = {
        "ln_1/g": (c,),
        "ln_1/b": (c,),
        "attn/c_attn/w": (1, c, 3 * c),
        "attn/c_attn/b": (3 * c,),
        "attn/c_proj/w": (1, c, c),
        "attn/c_proj/b": (c,),
        "ln_2/g": (c,),
        "ln_2/b": (c,),
        "mlp/c_fc/w": (1, c, 4 * c),
        "mlp/c_fc/b": (4 * c,),
        "mlp/c_proj/w": (1, 4 * c, c),
        "mlp/c_proj/b": (c,),
    }
    for i in range(n_layer):
        shapes |= {f"model/h{i}/{name}": shape for name, shape in layer.items()}
    return shapes


def save(folder, arrays, dtypes=None):
    folder.mkdir(exist_ok=True)
    dtypes = dtypes or {}
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, array in arrays.items():
            constant = tf.cast(tf.constant(array), dtypes.get(name, array.dtype))
            tf.compat.v1.get_variable(name, initializer=constant, use_resource=False)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(
            session, str(folder / "model.ckpt"), write_meta_graph=False, write_state=False
        )
    (folder / "checkpoint").write_text(
        'model_checkpoint_path: "model.ckpt"\nall_model_checkpoint_paths: "model.ckpt"\n'
    )
    reader = tf.train.load_checkpoint(str(folder / "model.ckpt"))
    read = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    assert sorted(read) == sorted(arrays)
    # NumPy's files know no bfloat16.
    return {
        name: array.astype(np.float32) if array.dtype.itemsize == 2 else array
        for name, array in sorted(read.items())
    }


def main():
    rng = np.random.default_rng(11)
    shapes = gpt2_shapes(**HPARAMS)
    tiny = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    folder = HERE / "tensorflow_tiny"
    np.savez_compressed(folder / "expected.npz", **save(folder, tiny))
    (folder / "hparams.json").write_text(json.dumps(HPARAMS) + "\n")

    edges = np.array([0.0, -0.0, 1.0, -2.5, 6.1e-5, 1e-7, 65504, np.inf, -np.inf, 3e38], np.float32)
    mixed = {
        "double": rng.normal(size=(3, 4)),
        "half": edges[:-1],
        "brain": edges,
        "global_step": np.int64(123_456_789_012),
        "small": np.array([-3, 2, 7], np.int32),
        "nothing": np.zeros((0, 6), np.float32),
        "scalar": np.float32(0.1),
    }
    folder = HERE / "tensorflow_dtypes"
    dtypes = {"half": tf.float16, "brain": tf.bfloat16}
    np.savez_compressed(folder / "expected.npz", **save(folder, mixed, dtypes))


if __name__ == "__main__":
    for name in ("tensorflow_tiny", "tensorflow_dtypes"):
        (HERE / name).mkdir(exist_ok=True)
    main()
