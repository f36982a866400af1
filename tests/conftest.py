import jax
import pytest

# Two devices, as on a user's machine: results must not depend on how lanes are spread. And nothing may be
# promoted by accident.
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def key():
    return jax.random.key(0)
