"""Work on many machines: workers started by a hosts file or Ray, tasks that outlive them."""
