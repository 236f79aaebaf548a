"""The log line of a step."""

from sed_sr.utils.training.progress import format_losses

DRIFT = {"drift_red": 0.0, "drift_green": 0.0, "drift_blue": 0.0}


def test_every_loss_is_printed_by_its_name_and_no_diagnostic_twice():
    """`artifact` stands for a loss that somebody adds."""
    terms = {"pixel": 0.5, "artifact": 0.25, "gan": 2.0, "d_loss": 1.5, "d_real": 3.0, "d_real_accuracy": 0.75}
    line = format_losses({**terms, "generator_gradient": 4.0, "share_gan": 0.1, **DRIFT})
    assert line.startswith("pixel 0.5  artifact 0.25  gan 2  d_loss 1.5  D(real) 3 (75% right)  |grad G| 4")
    assert line.endswith("shares of |grad G| gan 10.0%  colour +0.0 +0.0 +0.0")
    assert line.count("drift") == line.count("share_") == line.count("_gradient") == line.count("accuracy") == 0
