"""How often is a prediction right, and does the classifier know when it is not?

benchmarks.quality.photos_in_the_wild     a bundle on real photos of its classes and of other things
benchmarks.quality.street                 views and outliers of the recipe street, on photos
benchmarks.quality.early_exit             from which probability on one view is enough
benchmarks.quality.explanations           whether class activation maps are faithful
benchmarks.quality.selective_prediction   accuracy on the test set by coverage
benchmarks.quality.resize_policy          accuracy by how a photo becomes the network's square
benchmarks.quality.transfer_learning      what training.transfer reaches on folders of photos
benchmarks.quality.ood_scores             scores that tell OOD photos, compared
"""
