"""The runner `ray`: each cycle is a task of a Ray cluster, measured on the node where its devices are.

`runners` opens it by name: only here may Ray be imported. The pytest process (driver) submits and waits (`runner`,
`tasks`), Ray chooses the node (`cluster`), and the node measures as a machine of its own would (`node`).
"""
