"""CardiAlign: distributed ECG-language pretraining."""
