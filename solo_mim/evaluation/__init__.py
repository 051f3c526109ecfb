"""What a trained model is worth: features, kNN, linear probe, information diagnostics, plots."""
