data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}

locals {
  namespace = "dermaflow" # of infra/kubernetes
  account   = data.aws_caller_identity.current.account_id
  partition = data.aws_partition.current.partition

  # AWS's own, which starts the nodes; README.md, for accounts that do not have it yet
  scaling_role = join("", [
    "arn:${local.partition}:iam::${local.account}:role/",
    "aws-service-role/autoscaling.amazonaws.com/AWSServiceRoleForAutoScaling",
  ])

  tags = {
    project = "dermaflow"
    name    = var.name
  }
}
