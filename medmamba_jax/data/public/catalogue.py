"""The public sets by name."""

from medmamba_jax.data.public.cpn_xray import CPN_XRAY
from medmamba_jax.data.public.facts import PublicSet
from medmamba_jax.data.public.fetal_planes_db import FETAL_PLANES_DB
from medmamba_jax.data.public.kvasir import KVASIR
from medmamba_jax.data.public.medmnist import medmnist_sets
from medmamba_jax.data.public.pad_ufes_20 import PAD_UFES_20

# To add a set, write one file and add its name here.
CATALOGUE: dict[str, PublicSet] = {
    public_set.name: public_set
    for public_set in (KVASIR, FETAL_PLANES_DB, CPN_XRAY, PAD_UFES_20, *medmnist_sets())
}
