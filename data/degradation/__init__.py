"""LR made from HR: the second-order degradation of Real-ESRGAN (Wang et al., ICCVW 2021, section 3)."""
