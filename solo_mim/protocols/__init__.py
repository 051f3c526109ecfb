"""What is done with a trained network.

figures   features, and rows of a result that say what they are of
linear    a linear classifier, or a logistic regression
knn       nearest neighbours
transfer  both on several data sets, with few and with all labels
embed     features of a split, pictures, spectrum, information
export    weights for torchvision, timm or the Hugging Face Hub
"""
