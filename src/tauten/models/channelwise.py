"""Operations that leave each channel of a tensor where it is, as modules and by name."""

from torch import nn

from tauten.models.batchnorm import NORMS

VECTORS = (*NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.PReLU)
CHANNELWISE_MODULES = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Mish, nn.Softplus, nn.Tanh),
    *(nn.Sigmoid, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh),
)
POOLING_MODULES = (  # they join positions of an image, behind its channels
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool2d),
    *(nn.Upsample, nn.ZeroPad2d, nn.ReflectionPad2d),
)
CHANNELWISE = {  # functions and methods alike
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "mish", "softplus", "tanh"),
    *("sigmoid", "hardswish", "hardsigmoid", "hardtanh", "dropout", "dropout2d", "clamp"),
    *("contiguous", "clone", "detach", "neg", "add", "add_", "iadd", "sub", "sub_", "isub"),
    *("mul", "mul_", "imul", "div", "truediv", "itruediv"),
}
POOLING = {
    *("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
    *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
    *("adaptive_max_pool2d", "interpolate"),
}
