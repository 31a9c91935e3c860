# One repository an image; a tag that was pushed stays what it was, and images are deployed by digest anyway.
resource "aws_ecr_repository" "all" {
  for_each = toset(["data", "validate", "train", "judge", "registry", "mlflow"])

  name                 = "${var.name}/${each.key}"
  image_tag_mutability = "IMMUTABLE"
  force_delete         = false

  image_scanning_configuration {
    scan_on_push = true
  }

  encryption_configuration {
    encryption_type = "KMS"
    kms_key         = aws_kms_key.main.arn
  }
}

# Only what never had a tag goes: a released image may be what a registered model was made with.
resource "aws_ecr_lifecycle_policy" "all" {
  for_each = aws_ecr_repository.all

  repository = each.value.name
  policy = jsonencode({
    rules = [{
      rulePriority = 1
      description  = "layers of failed pushes"
      selection    = { tagStatus = "untagged", countType = "sinceImagePushed", countUnit = "days", countNumber = 14 }
      action       = { type = "expire" }
    }]
  })
}
