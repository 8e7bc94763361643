"""Methods of the weak-to-strong literature that work on labels, features and documents.

Pure functions of arrays: nothing here knows of phases, models or files' places, and all that is
random follows from a `seed`. Shapes in names: N documents, M documents with ground truth,
E examples, D features, C the two classes, T tokens. *Soft labels* are float32 [N, 2], column 1
P(label 1); a *keep mask* is bool [N]. A class is predicted where P(label 1) > 1/2, so that a tie
predicts 0. scikit-learn is imported where it is used.
"""
