"""The checker of annotations in tests: beartype, with int accepted for float as type checkers do.

python -m pytest --jaxtyping-packages=diffusion_jax.process,diffusion_jax.sampling,typechecking.checked
"""

from __future__ import annotations

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
