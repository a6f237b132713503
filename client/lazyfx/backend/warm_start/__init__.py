"""What a job asked for when it last ran arrives before it asks again."""
