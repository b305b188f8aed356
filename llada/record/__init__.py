"""What a run writes down beside its log, so that it can be looked at later: `RunRecord`, a callback for any trainer."""
