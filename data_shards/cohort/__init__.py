"""Virtual patients: a physiological 12-lead ECG generator that writes the file layouts of real data sets
(`generate.make_cohort`)."""
