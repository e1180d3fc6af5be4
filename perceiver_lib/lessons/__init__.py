"""What a notebook needs and what would not fit on a slide: probes, ablations, counting. Named as the notebooks are."""
