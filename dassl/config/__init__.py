"""Config: the defaults of the toolbox, of the trainers and of the datasets, in one yacs tree."""

from dassl.compat import clean_cfg
from dassl.config.defaults import check_domains, get_cfg_default, register_defaults
from dassl.config.files import read_yaml
from dassl.config.merge import (
    first_difference,
    merge_from_dict,
    merge_from_file,
    merge_from_list,
    set_key,
    set_keys,
    to_dict,
    trainer_in_file,
)

__all__ = [
    "check_domains",
    "clean_cfg",
    "first_difference",
    "get_cfg_default",
    "merge_from_dict",
    "merge_from_file",
    "merge_from_list",
    "read_yaml",
    "register_defaults",
    "set_key",
    "set_keys",
    "to_dict",
    "trainer_in_file",
]
